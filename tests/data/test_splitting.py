import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lconvnet.data.sets import held_out, size


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), data=st.data())
def test_held_out_partitions_and_keeps_each_class_in_its_share(labels, data):
    count = data.draw(st.integers(1, len(labels) - 1))
    seed = data.draw(st.integers(0, 2**31))
    labels = torch.tensor(labels)
    head, rest = held_out(labels, count, seed=seed)
    assert len(head) == count
    assert sorted(torch.cat([head, rest]).tolist()) == list(range(len(labels)))
    totals = torch.bincount(labels, minlength=5).double()
    share = totals * count / len(labels)
    # the key threshold t shared by all classes gives a class of n between n t - 1/2 and n t + 1/2 images, and ties at t
    # one more; the totals fix t to within 5 / (2 N) of count / N
    assert ((torch.bincount(labels[head], minlength=5) - share).abs() <= 1.5 + 2.5 * totals / len(labels)).all()


def test_shares_are_exact_where_they_are_whole():
    labels = torch.arange(10).repeat_interleave(50)
    head, rest = held_out(labels, 100, seed=3)
    assert torch.bincount(labels[head]).tolist() == [10] * 10
    assert torch.bincount(labels[rest]).tolist() == [40] * 10


def test_seed_decides():
    labels = torch.arange(4).repeat(25)
    first, again, other = (held_out(labels, 20, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_order_is_shuffled_not_sorted_by_class():
    labels = torch.arange(10).repeat_interleave(50)
    for part in held_out(labels, 100, seed=0):
        ordered = labels[part]
        assert (ordered[1:] < ordered[:-1]).sum() > len(part) // 4  # sorted: 0; random: 9/20 of the steps fall


def test_a_single_image_of_a_class_stays_for_training():
    labels = torch.tensor([0] * 20 + [1])
    for seed in range(20):
        assert 20 in held_out(labels, 8, seed=seed)[1].tolist()


def test_sizes():
    assert size("validation", None, stored=100, available=80, default=10) == 10
    assert size("validation", 0.25, stored=100, available=80, default=10) == 25
    assert size("validation", 7, stored=100, available=80, default=10) == 7
    assert size("validation", 0.001, stored=100, available=80, default=10) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "validation=0 of 80 images"),
        (80, "validation=80 of 80 images must be in 1..79"),
        (-3, "validation=-3 of 80"),
        (1.0, "validation=1.0 must be a fraction between 0 and 1"),
        (float("nan"), "validation=nan must be a fraction"),
        (0.9, "validation=90 of 80"),
        (True, "validation must be a count or a fraction, got True"),
        ("9", "validation must be a count or a fraction, got '9'"),
    ],
)
def test_refuses_sizes(value, message):
    with pytest.raises(ValueError, match=message):
        size("validation", value, stored=100, available=80, default=10)
