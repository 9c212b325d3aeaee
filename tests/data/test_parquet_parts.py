"""Rows that say their part, in whatever column: used or refused, never trained on against their word."""

import pytest

from lconvnet.data import DataError, load, read_samples

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PARTS = ["train"] * 14 + ["test"] * 6


@pytest.fixture
def read(tmp_path, encode):
    made = [encode(i) for i in range(20)]

    def reading(load=load, **columns):
        rows = {"image": [content for content, _ in made], "label": [i % 2 for i in range(20)], **columns}
        pq.write_table(pa.table(rows), tmp_path / "toy.parquet")
        return load(tmp_path / "toy.parquet")

    reading.tested = {array.tobytes() for _, array in made[14:]}
    return reading


@pytest.mark.parametrize("name", ["split", "fold", "Kind", "data_split", "caption"])
@pytest.mark.parametrize(
    "words", [("train", "test"), ("tr", "te"), ("seg_train", "seg_test"), ("Training", "hold-out")]
)
def test_a_column_that_says_parts_is_used_whatever_it_is_called(read, name, words):
    splits = read(**{name: pa.array([words[part == "test"] for part in PARTS])})
    assert {image.numpy().tobytes() for image in splits.test.images} == read.tested
    assert len(splits.train) + len(splits.validation) == 14
    with pytest.raises(DataError, match="a part called test"):
        read(read_samples, **{name: pa.array([words[part == "test"] for part in PARTS]).dictionary_encode()})


@pytest.mark.parametrize("name", ["is_test", "test", "isTrain", "split", "in_train", "set", "data_split", "held_out"])
@pytest.mark.parametrize("values", [(False, True), (0, 1), (0.0, 1.0), ("no", "yes"), ("0", "1"), (1, 1)])
def test_flags_are_refused(read, name, values):
    with pytest.raises(DataError, match=rf"column '{name}' of .* holds .*: write train, validation or test in a colum"):
        read(**{name: [values[part == "test"] for part in PARTS]})


def test_columns_that_disagree_are_refused(read):
    whole = {"split": ["train"] * 20, "subset": PARTS}
    for columns in (whole, dict(reversed(whole.items())), {"fold": PARTS[::-1], "split": PARTS}):
        with pytest.raises(DataError, match=r"row \d+ of .* is (train|test) by its column '\w+' and .*: remove one"):
            read(**columns)
    assert len(read(split=PARTS, fold=PARTS).test) == 6


def test_rows_without_a_part_beside_a_test_are_refused(read):
    for other in ("learn", None, ""):
        with pytest.raises(DataError, match=r"column 'fold' of .* has .* beside train or test: correct the rows, or"):
            read(fold=[part if part == "test" else other for part in PARTS])
    with pytest.raises(DataError, match="no rows to train on"):
        read(fold=["test"] * 20)


def test_columns_that_say_other_things_are_left_alone(read):
    plain = read()
    others = {
        "test_score": [0.1 * i for i in range(20)],
        "fold": [i % 5 for i in range(20)],
        "caption": [f"test {i}" for i in range(20)],
        "object": ["train", "car"] * 10,
        "subset": ["A", "B"] * 10,
        "train_id": list(range(20)),
        "test_count": [i % 4 for i in range(20)],
        "part_number": [i % 4 for i in range(20)],
        "split": [None] * 20,
    }
    for name, values in others.items():
        found = read(**{name: values})
        assert (found.train.images == plain.train.images).all() and len(found.test) == 4, name
    named = read(label=["train", "test"] * 10)
    assert named.class_names == ("test", "train") and len(named.test) == 4
