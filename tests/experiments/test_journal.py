"""Journals: what was written comes back, what was damaged is named, nothing is rewritten."""

import json

import pytest

from lconvnet import atomic
from lconvnet.experiments.robustness import Journal

COLUMNS = {"success": (bool,), "norm": (float, type(None))}


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "evaluation", "pgd", {"eps": 0.5, "seed": 0}, COLUMNS)


def rows(*indices):
    return [{"index": i, "success": i % 2 == 0, "norm": 0.1 * i if i else None} for i in indices]


def test_round_trip_and_append(journal):
    assert journal.read() == {}
    journal.append(rows(0, 1))
    first = journal.path.read_bytes()
    journal.append(rows(2))
    assert journal.path.read_bytes().startswith(first)
    assert list(journal.read().values()) == rows(0, 1, 2)
    assert json.loads(first.splitlines()[0]) == {"facts": {"eps": 0.5, "seed": 0}}


def test_other_facts_are_another_file(journal):
    other = Journal(journal.folder, "pgd", {"eps": 0.5, "seed": 1}, COLUMNS)
    journal.append(rows(0))
    assert other.path != journal.path
    assert other.read() == {}


def test_the_last_row_of_an_index_counts(journal):
    journal.append(rows(3))
    journal.append([{"index": 3, "success": True, "norm": 0.25}])
    assert journal.read()[3]["norm"] == 0.25


@pytest.mark.parametrize(
    "line",
    [
        b'{"index": 1, "succ',
        b"\xff\xfe",
        b"[]",
        b'{"index": 1, "success": 1, "norm": 0.5}',
        b'{"index": true, "success": true, "norm": 0.5}',
        b'{"index": 1, "success": true, "norm": "0.5"}',
        b'{"index": 1, "success": true}',
        b'{"index": 1, "success": true, "norm": 0.5, "more": 1}',
        b'{"index": 1, "success": true, "norm": 0.5}',
        b'{"index": 1, "success": true, "norm": 0.5, "seal": "0123456789ab"}',
        b'{"facts": {"eps": 0.7, "seed": 0}}',
    ],
)
def test_a_corrupt_line_is_named_and_the_rest_used(journal, line, caplog):
    journal.append(rows(0, 1))
    head, *lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join([head, lines[0], line + b"\n", lines[1]]))
    assert list(journal.read().values()) == rows(0, 1)
    assert [record.message.split(": ")[0] for record in caplog.records] == [f"{journal.path}:3"]


def test_after_a_torn_line_the_next_begins_afresh(journal, caplog):
    journal.append(rows(0))
    with open(journal.path, "ab") as file:
        file.write(b'{"index": 1')
    journal.append(rows(2))
    assert list(journal.read().values()) == rows(0, 2)
    assert "jsonl:3: not a record" in caplog.text


def test_an_undamaged_journal_is_silent(journal, caplog):
    journal.append(rows(0, 1))
    journal.read()
    assert not caplog.records


def test_a_full_disk_is_a_clear_error(journal, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(atomic.WriteError, match=r"pgd-\w+\.jsonl: cannot be written \(No space left on device\)"):
        journal.append(rows(0))


def test_a_changed_digit_is_found(journal, caplog):
    journal.append(rows(0, 1, 2))
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"norm": 0.1', b'"norm": 0.3'))
    assert list(journal.read().values()) == rows(0, 2)
    assert "jsonl:3: not a record" in caplog.text


def test_rows_of_other_facts_are_not_used(journal):
    other = Journal(journal.folder, "pgd", {"eps": 0.7, "seed": 0}, COLUMNS)
    other.append(rows(0))
    journal.path.write_bytes(other.path.read_bytes())
    assert journal.read() == {}


def test_an_empty_file_gets_its_head(journal):
    journal.append([])
    journal.path.write_bytes(b"")
    journal.append(rows(0))
    assert journal.path.read_bytes().startswith(b'{"facts": ')
    assert list(journal.read().values()) == rows(0)
