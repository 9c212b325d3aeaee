"""The parts of the checker against oracles of their own."""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("flint", reason="needs python-flint: pip install 'lconvnet[verify]'")

from lconvnet import lipschitz_bound
from lconvnet.bounds import trace
from lconvnet.bounds.forward_error import Arithmetic
from lconvnet.bounds.network import forward_error
from lconvnet.certify.files import certificate_documents, encoded_model, loosened
from lconvnet_verify.exact import Exact, forward
from lconvnet_verify.proof import Prover, norm, norm_is_at_most, roots
from lconvnet_verify.reading import read_certificate, read_model
from tests.verify.test_checker import branched


def values(exact):
    return [Fraction(int(v)) * Fraction(2) ** exact.exponent for v in exact.integers.ravel()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_are_exact(dtype):
    numbers = np.array([0.0, 1.0, -0.1, 1e-30, 3e20, np.finfo(dtype).tiny / 4], dtype)
    exact = Exact.of(numbers)
    assert values(exact) == [Fraction(float(v)) for v in numbers]
    assert values(exact + exact.map(np.negative)) == [0] * 6
    assert float(norm(Exact.of(np.array([3.0, 4.0]))).mid()) == 5


@pytest.mark.parametrize("kind", [float, complex])
def test_norms_that_are_too_small_are_never_shown(kind):
    """By 2e-15, less than rounding in the product W W^T: only what is added for rounding refuses; 1e-9 is enough."""
    random = np.random.default_rng(0)
    for size in (1, 3, 20, 40):
        for _ in range(20):
            W = random.standard_normal((2, size, size + 3)) + (1j if kind is complex else 0) * random.random()
            largest = float(np.linalg.norm(W, 2, axis=(1, 2)).max())
            assert not norm_is_at_most(W, largest * (1 - 2e-15))
            assert not norm_is_at_most(W.conj().transpose(0, 2, 1), largest * (1 - 2e-15))
            assert norm_is_at_most(W, largest * (1 + 1e-9))


def test_the_last_float_below_a_norm_is_never_shown():
    """One row, whose norm is the root of a rational: without what is added for rounding one in four would pass."""
    random = np.random.default_rng(0)
    for _ in range(200):
        W = random.standard_normal((1, 1, 7))
        square = sum(Fraction(float(w)) ** 2 for w in W.ravel())
        below = math.sqrt(square)
        while Fraction(below) ** 2 >= square:
            below = math.nextafter(below, 0)
        assert not norm_is_at_most(W, below)
        assert norm_is_at_most(W, below * (1 + 1e-13))


def test_norms_at_the_ends_of_the_range():
    W = np.ones((1, 2, 2))
    assert norm_is_at_most(W * 0, 0.0) and norm_is_at_most(W * 0, 1.0)
    assert not norm_is_at_most(W, 0.0) and not norm_is_at_most(W, 1e-300) and not norm_is_at_most(W * 1e200, 1.0)
    assert norm_is_at_most(W * 1e100, 2.0000001e100) and not norm_is_at_most(W * 1e100, 1.9999999e100)


def test_roots_of_unity():
    for period in (1, 2, 3, 7, 32):
        assert np.abs(roots(period) - np.exp(2j * np.pi * np.arange(period) / period)).max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_that_of_the_certifier(tmp_path, dtype):
    """Never more than the certifier counts, and half of it at least: it counts up to two roundings too many a sum."""
    network, images = branched(0, dtype)
    shape, place = (2, 4, 4), Path(tmp_path)
    (place / "model.safetensors").write_bytes(encoded_model(network, shape))
    bound = lipschitz_bound(network, input_shape=shape)
    _, (first, *_) = certificate_documents(network, images, bound=bound, level="sound", sources=[{}] * 4)
    (place / "certificate.json").write_text(json.dumps(first))
    prover, radius = Prover(read_model(place / "model.safetensors")), 50.0
    certificate = dataclasses.replace(read_certificate(place / "certificate.json"), radius=radius)
    stored = prover._stored(certificate, forward(prover.model.nodes, prover.tensors, certificate.image))
    traced = trace(network, shape)
    uppers = {layer.name: layer.upper for layer in loosened(bound, traced.graph).layers}
    tensors = {**network.state_dict(), **traced.constants}
    known = forward_error(traced.graph, uppers, tensors, Arithmetic.of(dtype))
    largest = float(images[0].double().norm()) + radius
    for name, found in stored.items():
        error, size = (line.slope * largest + line.offset for line in (known[name].error, known[name].norm))
        assert 0.45 * error <= float(found.error.mid()) <= error
        assert 0.95 * size <= float(found.norm.mid()) <= size  # a line above a hyperbola, after concatenation
