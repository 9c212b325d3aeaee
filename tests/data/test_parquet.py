import json

import numpy as np
import pytest
import torch

from lconvnet.data import load, read_samples

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def rows(encode, count=20, classes=2, start=0, **options):
    made = [encode(start + i, **options) for i in range(count)]
    return [content for content, _ in made], [i % classes for i in range(count)], [array for _, array in made]


def keys(images):
    return [image.numpy().tobytes() for image in images.images]


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "label"), ("image", "labels")])
def test_one_file_is_split_three_ways(tmp_path, encode, write_parquet, image, label):
    cells, labels, arrays = rows(encode)
    write_parquet(tmp_path / "toy.parquet", cells, labels, image=image, label=label)
    splits = load(tmp_path / "toy.parquet")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [14, 2, 4]
    expected = {array.tobytes(): label for array, label in zip(arrays, labels, strict=True)}
    assert {k: v for part in parts for k, v in zip(keys(part), part.labels.tolist(), strict=True)} == expected
    assert (splits.name, splits.class_names) == ("toy", ("0", "1"))


def test_a_folder_of_shards_keeps_its_test_rows(tmp_path, encode, write_parquet):
    cells, labels, trained = rows(encode)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", cells[:7], labels[:7], names=["cat", "dog"])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", cells[7:], labels[7:], names=["cat", "dog"])
    tested, test_labels, arrays = rows(encode, 6, start=100)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", tested, test_labels, names=["cat", "dog"])
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (18, 2)
    expected = {array.tobytes(): label for array, label in zip(trained, labels, strict=True)}
    assert [expected[key] for key in keys(splits.train)] == splits.train.labels.tolist()
    stored = dict(zip((array.tobytes() for array in arrays), test_labels, strict=True))
    assert dict(zip(keys(splits.test), splits.test.labels.tolist(), strict=True)) == stored
    assert splits.class_names == ("cat", "dog")
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-00000-of-00002.parquet is one of 2 files, but not all are in"):
        load(tmp_path)


def test_labels_may_be_names(tmp_path, encode, write_parquet):
    cells, labels, _ = rows(encode)
    write_parquet(tmp_path / "toy.parquet", cells, [("owl", "ant")[label] for label in labels])
    splits = load(tmp_path / "toy.parquet")
    assert splits.class_names == ("ant", "owl")
    assert torch.bincount(splits.train.labels).tolist() == [7, 7]


def test_named_set_in_a_local_folder(tmp_path, monkeypatch, encode, write_parquet):
    for role in ("train", "test"):
        cells, labels, _ = rows(encode, 40, classes=10, kind="JPEG", size=(8, 8))
        write_parquet(tmp_path / f"mnist/{role}-00000-of-00001.parquet", cells, labels)
    by_argument = load("mnist", directory=tmp_path)
    monkeypatch.setenv("LCONVNET_DATA", str(tmp_path))
    by_environment = load("mnist")
    assert keys(by_argument.train) == keys(by_environment.train)
    assert (by_argument.name, by_argument.classes) == ("mnist", 10)
    assert by_argument.note == "JPEG-recompressed pixels"  # MNIST itself is lossless
    monkeypatch.setenv("LCONVNET_DATA", str(tmp_path / "elsewhere"))
    assert len(load("mnist", directory=str(tmp_path)).test) == 40  # the argument comes before the environment
    assert len(load("mnist", directory=str(tmp_path), limit=20).test) == 20


def test_a_published_order_stays(tmp_path, encode, write_parquet):
    """The first test images of a named set are those that others attack."""
    for role, start in (("train", 0), ("test", 100)):
        cells, labels, arrays = rows(encode, 40, classes=10, start=start)
        write_parquet(tmp_path / f"mnist/{role}-0.parquet", cells, sorted(labels))
    assert keys(load("mnist", directory=tmp_path).test) == [array.tobytes() for array in arrays]


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place : place + 40] = b"\x00" * 40
    path.write_bytes(bytes(content))


def test_refuses_files(tmp_path, encode, write_parquet):
    cells, labels, _ = rows(encode)
    whole = tmp_path / "whole.parquet"
    write_parquet(whole, cells, labels)
    truncated = tmp_path / "truncated.parquet"
    truncated.write_bytes(whole.read_bytes()[:-100])
    foreign = tmp_path / "foreign.parquet"
    foreign.write_text("no parquet")
    empty = tmp_path / "empty.parquet"
    empty.write_bytes(b"")
    for file in (truncated, foreign, empty):
        with pytest.raises(ValueError, match=rf"{file.name} is not a readable parquet file \(.+\): fetch it again"):
            load(file)
    damage(whole, 200)
    with pytest.raises(ValueError, match=r"whole.parquet"):
        load(whole)
    write_parquet(tmp_path / "rowless.parquet", [], [])
    with pytest.raises(ValueError, match=r"rowless.parquet has no rows"):
        load(tmp_path / "rowless.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, y: (c[:3] + [c[3][:50]] + c[4:], y), "toy.parquet row 3 is not a readable image"),
        (lambda c, y: (c[:3] + [None] + c[4:], y), "image of .*toy.parquet row 3 holds no encoded bytes"),
        (
            lambda c, y: (c, y[:5] + [None] + y[6:]),
            "label of .*toy.parquet row 5 is None: every label must be an integer",
        ),
        (lambda c, y: (c, [float(v) for v in y]), "label of .* row 0 is 0.0: every label must be an integer"),
        (lambda c, y: (c, [bool(v) for v in y]), "label of .* row 0 is False: every label"),
        (lambda c, y: (c, y[:5] + [-1] + y[6:]), r"label -1 of .*toy.parquet row 5 is out of range 0\.\.1"),
        (lambda c, y: (c, y[:5] + [7] + y[6:]), "class 2 of 8 has no training image: add some, or renumber"),
        (lambda c, y: (c, [0] * len(y)), "labels of the training images are all 0"),
    ],
)
def test_a_bad_row_is_named(tmp_path, encode, write_parquet, change, message):
    cells, labels, _ = rows(encode)
    write_parquet(tmp_path / "toy.parquet", *change(cells, labels))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "toy.parquet")


def test_stored_class_names_bound_the_labels(tmp_path, encode, write_parquet):
    cells, labels, _ = rows(encode)
    write_parquet(tmp_path / "more.parquet", cells, labels, names=["a", "b", "c"])
    with pytest.raises(ValueError, match="class 2 of 3 has no training image"):
        load(tmp_path / "more.parquet")
    labels[4] = 2
    write_parquet(tmp_path / "fewer.parquet", cells, labels, names=["a", "b"])
    with pytest.raises(ValueError, match=r"label 2 of .*fewer.parquet row 4 is out of range 0\.\.1"):
        load(tmp_path / "fewer.parquet")


def test_refuses_columns_and_roles(tmp_path, encode, write_parquet):
    cells, labels, _ = rows(encode)
    write_parquet(tmp_path / "a.parquet", cells, labels, image="images")
    with pytest.raises(ValueError, match=r"a.parquet has no column 'image' or 'img', only images, label; did you mean"):
        load(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", cells, labels, label="target")
    with pytest.raises(ValueError, match=r"b.parquet has no column 'label' or 'labels', only image, target"):
        load(tmp_path / "b.parquet")
    write_parquet(tmp_path / "c/test-0.parquet", cells, labels)
    with pytest.raises(ValueError, match=r"c has no train-.*parquet beside test-0.parquet"):
        load(tmp_path / "c")
    write_parquet(tmp_path / "c/train-0.parquet", cells, labels)
    write_parquet(tmp_path / "c/extra.parquet", cells, labels)
    with pytest.raises(ValueError, match=r"extra.parquet row 0 is neither train, validation nor test"):
        load(tmp_path / "c")


def test_test_labels_must_be_training_labels(tmp_path, encode, write_parquet):
    cells, labels, _ = rows(encode)
    write_parquet(tmp_path / "train.parquet", cells, labels)
    write_parquet(tmp_path / "test.parquet", cells, labels[:-1] + [2])
    with pytest.raises(
        ValueError, match=r"label 2 of .*test.parquet row 19 is out of range: the training classes are 0\.\.1"
    ):
        load(tmp_path)


def test_says_what_to_install(tmp_path, monkeypatch, encode, write_parquet):
    write_parquet(tmp_path / "toy.parquet", *rows(encode)[:2])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"needs 'pyarrow.parquet': pip install 'lconvnet\[data\]'"):
        load(tmp_path / "toy.parquet")


def test_integers_that_floats_do_not_hold_are_refused_column_by_column(tmp_path):
    """Not by what stands beside them: floats above 2^53 say nothing of integers, and a NaN hides none."""
    path, small, large = tmp_path / "x.parquet", [1, 2, 3, 4], [2**53 + 1, 2, 3, 4]
    for floats in ([1e300, 1.0, 2.0, 3.0], [float("nan"), 1.0, 2.0, 3.0]):
        pq.write_table(pa.table({"f": floats, "k": small}), path)
        np.testing.assert_array_equal(read_samples(path).numpy(), np.column_stack([floats, small]))
        pq.write_table(pa.table({"f": floats, "k": small, "l": large}), path)
        with pytest.raises(ValueError, match=r"has integers of 2\^53 and more in l, which float64 does not hold"):
            read_samples(path)
    pq.write_table(pa.table({"v": [[2**53 + 1, 2], [3, 4]]}), path)
    with pytest.raises(ValueError, match=r"integers of 2\^53 and more in v"):
        read_samples(path)


@pytest.mark.parametrize("index", ["__index_level_0__", "row"])
def test_the_index_of_pandas_is_not_a_coordinate(tmp_path, index):
    values = np.random.default_rng(0).normal(size=4)
    table = pa.table({"x": values, index: [7, 3, 9, 5]})
    stored = json.dumps({"index_columns": [index, {"kind": "range"}]}).encode()
    pq.write_table(table.replace_schema_metadata({"pandas": stored}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(read_samples(tmp_path / "a.parquet").numpy(), values[:, None])
    pq.write_table(table, tmp_path / "bare.parquet")
    assert read_samples(tmp_path / "bare.parquet").shape == (4, 1 if index.startswith("__") else 2)
    pq.write_table(table.replace_schema_metadata({"pandas": b"[1]"}), tmp_path / "broken.parquet")
    if index == "row":
        with pytest.raises(ValueError, match=r"broken.parquet holds broken pandas metadata: write it again"):
            read_samples(tmp_path / "broken.parquet")
