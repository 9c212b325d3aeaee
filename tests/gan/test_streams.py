"""Streams of batches: any batch again, by anybody; pictures of them; the file of a generator."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from lconvnet import gan
from lconvnet.data import Images
from tests.gan import tiny


def stream(kind: str, seed: int = 0):
    return gan.RealSamples(tiny.digits(), seed) if kind == "real" else gan.GeneratedSamples(tiny.generator(), seed)


@pytest.mark.parametrize("kind", ["real", "generated"])
def test_batch_k_is_a_function_of_seed_and_k(kind: str) -> None:
    first = [stream(kind).sample(8, k) for k in range(4)]
    torch.manual_seed(99)
    again = stream(kind)
    backwards = [again.sample(8, k) for k in reversed(range(4))][::-1]
    for one, other in zip(first, backwards, strict=True):
        assert torch.equal(one, other)
        assert one.shape == (8, *tiny.SHAPE) and one.dtype == torch.float32
        assert one.min() >= 0 and one.max() <= 1
    different = [*first, stream(kind, seed=1).sample(8, 0)]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


def test_sampling_leaves_the_global_state_and_the_generator_alone() -> None:
    generator = tiny.generator().train()
    before, state = {k: v.clone() for k, v in generator.state_dict().items()}, torch.random.get_rng_state()
    gan.GeneratedSamples(generator, 0).sample(3, 0)
    stream("real").sample(3, 0)
    assert generator.training
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_stream_does_not_follow_the_training_of_its_generator() -> None:
    generator = tiny.generator()
    samples = gan.GeneratedSamples(generator, 0)
    before = samples.sample(4, 0)
    with torch.no_grad():
        generator.project.weight.mul_(2)
    assert torch.equal(samples.sample(4, 0), before)
    assert not torch.equal(gan.GeneratedSamples(generator, 0).sample(4, 0), before)


def test_real_images_are_drawn_uniformly() -> None:
    count = 50
    pixels = torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)
    images = Images(pixels, torch.zeros(count, dtype=torch.int64), 1, "numbers")
    draws = torch.cat([gan.RealSamples(images, 0).sample(100, k) for k in range(50)]).mul(255).round().long().flatten()
    counts = torch.bincount(draws, minlength=count).double()
    # Multinomial with mean 100: chi-squared with 49 degrees of freedom, mean 49, standard deviation 9.9.
    assert 15 < ((counts - 100) ** 2 / 100).sum() < 100


def test_a_large_batch_is_generated_in_parts() -> None:
    generator = tiny.generator()
    samples = gan.GeneratedSamples(generator, 3).sample(600, 0)
    z = torch.randn(600, 6, generator=_generator_of(3))
    with torch.no_grad():
        assert torch.allclose(samples, generator.eval()(z), atol=1e-6)


def _generator_of(seed: int) -> torch.Generator:
    """The rule, written once more: SHA-256 of seed, purpose, epoch 0 and step 0."""
    digest = hashlib.sha256(f"{seed}/generated/0/0".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="holds none to draw from"):
        gan.RealSamples(tiny.digits().subset([]), 0)
    with pytest.raises(ValueError, match=r"seed='a': must be an integer"):
        gan.GeneratedSamples(tiny.generator(), "a")  # pyright: ignore[reportArgumentType]
    for kind in ("real", "generated"):
        with pytest.raises(ValueError, match="count=0: must be an integer of at least 1"):
            stream(kind).sample(0, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_at_its_place(channels: int) -> None:
    images = torch.rand(7, channels, 5, 4)
    picture = np.asarray(Image.open(io.BytesIO(gan.png(gan.grid(images)))))
    picture = picture.reshape(*picture.shape[:2], channels)
    assert picture.shape == (3 * 5 + 2 * 2, 3 * 4 + 2 * 2, channels)
    for index, image in enumerate(images):
        top, left = 7 * (index // 3), 6 * (index % 3)
        cell = picture[top : top + 5, left : left + 4]
        assert np.array_equal(cell, (image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8))
    assert not picture[14:, 6:].any()
    assert not picture[5:7].any()


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (0, 1, 4, 4), (1, 4, 4)])
def test_what_is_no_batch_of_images_has_no_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected .N, 1 or 3, H, W. with at least one image"):
        gan.grid(torch.zeros(shape))


def test_a_saved_generator_comes_back_in_a_fresh_process(tmp_path: Path) -> None:
    generator, path = tiny.generator(channels=3, image_size=64, latent=3, width=1), tmp_path / "g.safetensors"
    generator(torch.randn(16, generator.latent))  # statistics that are not those of a fresh one
    gan.save_generator(generator, path)
    code = (
        "import sys, torch; from lconvnet import gan; g = gan.load_generator(sys.argv[1]);"
        "torch.save(gan.GeneratedSamples(g, 4).sample(5, 6), sys.argv[2]); assert not g.training"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(gan.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "x.pt")], check=True, env=environment)
    # One thread or several, the same sums of a few terms: round-off of float32.
    expected = gan.GeneratedSamples(generator, 4).sample(5, 6)
    assert torch.allclose(torch.load(tmp_path / "x.pt", weights_only=True), expected, atol=1e-6)
    assert gan.load_generator(path).image_shape == generator.image_shape
    gan.save_generator(gan.load_generator(path), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def rewritten(**facts):
    """A saved generator with other facts."""

    def damage(path: Path) -> None:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            old = json.loads((file.metadata() or {})["lconvnet"])
        safetensors.torch.save_file(tensors, path, metadata={"lconvnet": json.dumps({**old, **facts})})

    return damage


def not_finite(path: Path) -> None:
    generator = tiny.generator()
    with torch.no_grad():
        generator.project.weight[0] = float("nan")
    gan.save_generator(generator, path)


def without_a_tensor(path: Path) -> None:
    facts = gan.load_generator(path)
    tensors = {k: v.contiguous() for k, v in facts.state_dict().items() if k != "project.weight"}
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    safetensors.torch.save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is not a file; name a generator"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is truncated or not a safetensors file"),
        (lambda path: path.write_bytes(pickle.dumps({})), "is truncated or not a safetensors file"),
        (lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path), "not a generator of this package"),
        (rewritten(width=3), "not a generator of this package, or damaged .*size mismatch"),
        (rewritten(width=2**40), "less than or equal to 4096"),
        (rewritten(image_size=24), "must be a power of two"),
        (rewritten(format="lconvnet-network-1"), "not a generator of this package"),
        (rewritten(extra=1), "Extra inputs are not permitted"),
        (not_finite, r"project\.weight .torch\.float32. holds values that are not finite"),
        (without_a_tensor, r"Missing key\(s\) in state_dict: .project\.weight"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(damage, message: str, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    gan.save_generator(tiny.generator(), path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        gan.load_generator(path)
