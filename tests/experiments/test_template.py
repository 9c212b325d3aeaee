"""The grammar of choices: labels join to paths, everything ambiguous is refused, the published families come out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lconvnet.experiments.family import Choice, expand
from lconvnet.experiments.loading import read

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def paths(template):
    return [choice.path for choice in expand(template)]


def test_without_choices_there_is_one_run_in_the_folder_itself():
    assert expand({"seed": 0, "list": [1, {"a": 2}]}) == [Choice((), {"seed": 0, "list": [1, {"a": 2}]})]
    assert paths({"seed": 0}) == ["."]


def test_inner_choices_follow_the_label_of_their_branch_and_multiply_only_it():
    template = {"net|fc": {"units|3": [1, 2]}, "net|conv": {"kind|A": "a", "kind|B": "b"}, "seed|X": 0}
    assert paths(template) == ["fc/3/X", "conv/A/X", "conv/B/X"]
    assert expand(template)[1].value == {"net": {"kind": "a"}, "seed": 0}


def test_labels_come_in_the_order_of_the_file_wherever_they_are_nested():
    template = {"trainer": {"optimizer": {"lr|slow": 1, "lr|fast": 2}, "net|N": {"a": 0}}, "seed|S": 0}
    assert paths(template) == ["slow/N/S", "fast/N/S"]
    assert paths({"list": [{"x|1": 1, "x|2": 2}, 0, {"y|3": 3}]}) == ["1/3", "2/3"]


def test_a_bracketed_key_puts_its_keys_in_its_own_place():
    template = {"net": {"in": 3, "[modules]|A": {"conv": "a", "linear": "l"}, "[modules]|B": {"conv": "b"}}}
    first, second = expand(template)
    assert (first.path, first.value) == ("A", {"net": {"in": 3, "conv": "a", "linear": "l"}})
    assert (second.path, second.value) == ("B", {"net": {"in": 3, "conv": "b"}})


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ({"net": {"a|": 0}}, r"net\.a\|: '' cannot be the name of a folder"),
        ({"a|..": 0}, r"'\.\.' cannot be the name"),
        ({"a|x/y": 0}, r"'x/y' cannot be the name"),
        ({"a|x\0": 0}, "cannot be the name"),
        ({"a|x\ny": 0}, "cannot be the name"),
        ({"a| x": 0}, "cannot be the name"),
        ({"a|.hidden": 0}, "cannot be the name"),
        ({"a|__MACOSX": 0}, "cannot be the name"),
        ({"a|" + 300 * "x": 0}, "cannot be the name"),
        ({"a|x": 0, "a": 1}, r"a: 'a' has a fixed value beside its choices"),
        ({"a": 0, "a|x": 1}, r"a\|x: 'a' has a fixed value beside its choices"),
        ({"[a]|x": 3}, r"\[a\]: a key in brackets must hold a mapping, not 3"),
        ({"b": 1, "[a]|x": {"b": 2}}, r"\[a\]: 'b' is there twice"),
        ({f"k{i}": {f"v|{j}": j for j in range(10)} for i in range(6)}, "more than 100000 combinations"),
        ({"deep": {f"k{i}": {f"v|{j}": j for j in range(50)} for i in range(60)}}, "more than 100000 combinations"),
        ({f"f{i}": {f"k{j}|{c}": 0 for j in range(16) for c in "ab"} for i in range(9)}, "more than 100000"),
        ({"[x]": dict.fromkeys(map(str, range(999))), **{f"k{j}|{c}": 0 for j in range(12) for c in "ab"}}, "entries"),
    ],
)
def test_what_is_ambiguous_or_endless_is_refused(template, match):
    with pytest.raises(ValueError, match=match):
        expand(template)


def joined(groups):
    return {f"k{i}{bar}": value for i, group in enumerate(groups) for bar, value in group.items()}


def trees(depth):
    labels = st.sampled_from(["x", "y"])
    inner = st.integers(0, 3) if depth == 0 else st.one_of(st.integers(0, 3), trees(depth - 1))
    group = st.one_of(
        st.builds(lambda value: {"": value}, inner),
        st.dictionaries(labels.map(lambda label: f"|{label}"), inner, min_size=1, max_size=2),
    )
    groups = st.lists(group, min_size=1, max_size=2)
    return groups.map(
        lambda all_: {f"k{i}{bar}": value for i, group in enumerate(all_) for bar, value in group.items()}
    )


@given(trees(2))
def test_no_run_shares_a_folder_with_another_or_lies_in_it(template):
    found = [choice.labels for choice in expand(template)]
    assert len(set(found)) == len(found)
    assert not any(one != other and other[: len(one)] == one for one in found for other in found)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_number_of_runs_is_the_product_of_the_choices(sizes):
    template = {f"k{i}": {f"v|{i}-{j}": j for j in range(size)} for i, size in enumerate(sizes)}
    choices = expand(template)
    total = 1
    for size in sizes:
        total *= size
    assert len(choices) == total == len({choice.path for choice in choices})
    for choice in choices:
        assert choice.path == "/".join(f"{i}-{choice.value[f'k{i}']['v']}" for i in range(len(sizes)))


def test_the_published_families_have_the_published_paths():
    if not REFERENCE.is_dir():
        pytest.skip("needs the published templates in ../shared/reference")
    found = [
        f"{file.parent.relative_to(REFERENCE).as_posix()}/{choice.path}"
        for file in sorted(REFERENCE.glob("runs/**/template.yaml"))
        for choice in expand(read(file))
    ]
    assert len(found) == 378
    assert sorted(found) == sorted((REFERENCE / "run_paths.txt").read_text().split())
