"""What a distribution can be, what is refused, and that the division is a function of seed and content."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from lconvnet.tasks.estimates import Mean, central_interval, intervals
from lconvnet.tasks.samples import batch_indices, copies, floats, prepare, require_comparable, units
from lconvnet.wasserstein import estimate
from tests.wasserstein.forms import Draw


def side(given, name="real", **changes):
    return prepare(given, name, **{"held_out": None, "batch_size": 4, "seed": 0, **changes})


@pytest.fixture
def folder(tmp_path):
    """Ten grey 5x4 images, some in a folder of their own."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 5, 4), dtype=np.uint8)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for place, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / ("more" if place > 5 else "") / f"{place}.png")
    return tmp_path / "images", torch.from_numpy(pixels)[:, None]


def multiset(samples):
    return sorted(map(tuple, samples.flatten(1).tolist()))


def test_folders_parquet_npy_and_arrays_give_the_same(folder, tmp_path):
    path, pixels = folder
    cells = [file.read_bytes() for file in sorted(path.rglob("*.png"))]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", pixels.numpy())
    expected = multiset(pixels.float() / 255)
    for given in (path, str(path), tmp_path / "a.parquet", tmp_path / "a.npy", pixels, pixels.numpy()):
        found = side(given, held_out=4, batch_size=6)
        assert multiset(torch.cat([found.batch(0), found.held_out])) == expected, given
        assert (found.shape, found.pixels, units(found)) == ((1, 5, 4), True, "l2 over 1x5x4 pixels in [0, 1]")


def test_numbers_of_a_parquet_file(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 2))
    pq.write_table(pa.table({"a": values[:, 0], "b": values[:, 1]}), tmp_path / "columns.parquet")
    pq.write_table(pa.table({"v": list(values)}), tmp_path / "lists.parquet")
    keys = {side(given).key for given in (values, tmp_path / "columns.parquet", tmp_path / "lists.parquet")}
    assert len(keys) == 1


def test_named_data():
    assert side("digits").shape == (1, 28, 28)


def test_division_is_disjoint_complete_and_reproducible():
    values = torch.arange(20.0)
    one, again, other = side(values), side(values.clone()), side(values, seed=1)
    training = torch.cat([one.batch(step) for step in range(4)])
    assert sorted([*training.flatten().tolist(), *one.held_out.flatten().tolist()]) == values.tolist()
    assert all(torch.equal(one.batch(step), again.batch(step)) for step in range(9))
    assert torch.equal(one.held_out, again.held_out)
    assert not torch.equal(one.held_out, other.held_out)
    assert not torch.equal(one.batch(0), one.batch(4))  # another pass, another order


def test_other_content_is_divided_otherwise():
    """Else the held-out samples of paired sets would depend on each other, and the interval would be wrong."""
    values = torch.arange(20.0)
    assert not torch.equal(side(values).held_out, side(-values).held_out.neg())


def test_batches_never_exceed_the_samples():
    assert batch_indices(0, 3, 5, 64).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_samplers_draw_anew():
    draw = Draw(lambda n, g: torch.randn(n, 2, generator=g))
    found = side(draw, held_out=2500)
    assert found.held_out.shape == (2500, 2)
    assert not torch.equal(found.held_out[:1000], found.held_out[1000:2000])
    assert torch.equal(found.batch(3), side(draw, held_out=2500).batch(3))
    assert not torch.equal(found.batch(3), found.batch(4))


def test_floats():
    assert floats(torch.tensor([[255]], dtype=torch.uint8)).item() == 255.0  # no image
    assert floats(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert floats(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert side(torch.rand(8, 2).bfloat16()).held_out.dtype == torch.float32


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_integers_are_kept(kind):
    """Every one of them is held out or trained on, as the number that it is."""
    values = np.arange(20).astype(kind) if kind == "bool" else np.iinfo(kind).max // 2**11 - np.arange(20).astype(kind)
    found = side(values, batch_size=16)
    exact = sorted(map(float, values))
    assert sorted([*found.batch(0).flatten().tolist(), *found.held_out.flatten().tolist()]) == exact


def test_equal_samples_are_held_out_as_often_as_they_were_drawn():
    """Of 0 and 100 other values each the same part, as many as asked; and those that are equal are one group."""
    values = torch.cat([torch.zeros(2000), torch.arange(1.0, 101.0).repeat(20)])
    found = side(values, held_out=1200)
    assert len(found.held_out) == 1200
    assert abs(int((found.held_out == 0).sum()) - 600) < 4 * (1200 * 0.25 * 0.7) ** 0.5  # hypergeometric
    assert len(found.groups.unique()) == len(found.held_out.unique())
    assert side(Draw(lambda n, g: torch.zeros(n, 1)), held_out=7).groups.tolist() == list(range(7))


MIXTURES = {  # mass, number of values (0: continuous), place
    "continuous": [(1.0, 0, 0.5)],
    "atoms above": [(0.5, 100, 1.0), (0.5, 0, 0.0)],
    "atoms below": [(0.5, 100, 0.0), (0.5, 0, 1.0)],
    "three kinds": [(0.3, 100, 1.0), (0.4, 1000, 0.0), (0.3, 0, 1.0)],
    "half at 0": [(0.5, 1, 0.0), (0.5, 0, 0.9)],
}


def drawn(mixture, count, generator):
    """Independent draws, and their mean: a part adds to its place a uniform number of [0, 0.01), in steps or not."""
    part = torch.multinomial(torch.tensor([mass for mass, _, _ in mixture]), count, True, generator=generator)
    steps = torch.tensor([float(values or 2**20) for _, values, _ in mixture], dtype=torch.float64)[part]
    place = torch.tensor([place for _, _, place in mixture], dtype=torch.float64)[part]
    offset = (torch.rand(count, generator=generator, dtype=torch.float64) * steps).floor() / steps
    mean = sum(mass * (place + 0.005 * (1 - 1 / (values or 2**20))) for mass, values, place in mixture)
    return (place + 0.01 * offset)[:, None], mean


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=list(MIXTURES))
def test_values_that_come_again_do_not_move_the_interval(mixture):
    """Of 40 intervals at 95 % on either side: five misses have the probability 0.3 %."""
    missed = [0, 0]
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        (real, truth), fake = drawn(mixture, 2000, generator), torch.zeros(2000, 1, dtype=torch.float64)
        sides = side(real, seed=seed), side(fake + torch.rand(2000, 1, generator=generator) / 1e9, "fake", seed=seed)
        values = sides[0].held_out.flatten(), sides[1].held_out.flatten()
        (low, high), _ = intervals(values, *sides, confidence=0.95, support=None)
        missed = [missed[0] + (low > truth), missed[1] + (high < truth)]
    assert max(missed) < 5


def test_copies_of_samples_are_covered_by_a_critic_that_does_not_know_them():
    """Every draw five times, 40 arrays; counted as different ones half the intervals are 0.6 of this."""
    missed, widths = [0, 0], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        one, other = (torch.randn(100, 1, generator=generator).repeat(5, 1) for _ in range(2))
        sides = side(one, seed=seed), side(other, "fake", seed=seed)
        means = [Mean.of(part.held_out.flatten(), part.groups) for part in sides]
        low, high = central_interval(*means, 0.95, 0.0)
        missed, widths = [missed[0] + (low > 0), missed[1] + (high < 0)], [*widths, high - low]
    assert max(missed) < 5
    assert np.mean(widths) == pytest.approx(2 * 1.98 * (2 * 0.0179) ** 0.5, rel=0.1)  # (1 / 100 + 99 / 100 * 4 / 499)


def test_copies_are_told_in_every_dtype():
    for dtype in (torch.uint8, torch.float32, torch.float64):
        assert copies(torch.tensor([[1, 2], [3, 4], [1, 2]], dtype=dtype)).tolist() == [0, 1, 0]


class Forgetful:
    """A sampler that draws from the global generator."""

    def sample(self, count, generator):
        return torch.randn(count, 2)


GOOD = torch.rand(8, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 2), "real has 1 sample: at least 4"),
        (torch.zeros(3, 2), "real has 3 samples: at least 4"),
        (torch.zeros(0, 2), r"real has shape \(0, 2\)"),
        (torch.zeros(()), r"real has shape \(\): give samples of shape \(N, ...\)"),
        (torch.tensor([[0.0], [1.0], [torch.nan], [2.0]]), "real has NaN or infinite values, first in sample 2"),
        (np.array([0.0, np.inf, 1.0, 2.0]), "real has NaN or infinite values, first in sample 1"),
        (np.array(["a", "b"]), "real is <U1: give numbers"),
        (torch.zeros(4, 2, dtype=torch.complex64), "real is torch.complex64"),
        (3, "real is int: give numbers"),
        (np.ma.masked_array(np.zeros((8, 2)), mask=True), "real is a masked array"),
        (np.zeros((8, 2), dtype=np.longdouble), "real is float128: give numbers"),
        (np.full((8, 1), 2**53), r"real has integers of 2\^53 and more, which no float holds: subtract"),
        (torch.zeros(8, 2).to_sparse(), "real is torch.float32: give numbers"),
        ("no-such-folder", "real: no-such-folder does not exist: give a folder of images"),
        (Forgetful(), "real.sample gives other values for an equal generator"),
        (Draw(lambda n, g: torch.zeros(n + 1, 2)), r"real.sample\(16, generator\) gives \(17, 2\)"),
        (Draw(lambda n, g: [0.0] * n), r"real.sample\(16, generator\) gives list"),
        (Draw(lambda n, g: torch.full((n, 2), torch.inf)), "real has NaN or infinite values, first in sample 0"),
    ],
)
def test_unusable_samples(given, message):
    with pytest.raises(ValueError, match=message):
        estimate(given, GOOD, steps=1)


def test_unusable_folders(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="real: .*empty holds no images"):
        estimate(tmp_path / "empty", GOOD, steps=1)
    Image.new("L", (7, 7)).save(folder[0] / "odd.png")
    with pytest.raises(
        ValueError, match=r"fake: .*odd.png is 7x7, but .* is 5x4 .* option of lconvnet.data.read_samples"
    ):
        estimate(GOOD, folder[0], steps=1)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not a readable .npy file"), (b"\x93NUMPY", "not a readable .npy file")]
)
def test_broken_arrays(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        side(tmp_path / "a.npy")


def test_pickled_arrays_are_not_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable .npy file"):
        side(tmp_path / "a.npy")


def test_text_is_no_sample(tmp_path):
    pq.write_table(pa.table({"name": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="neither a column image or img nor columns of numbers alone, only name"):
        side(tmp_path / "a.parquet")


def test_the_two_must_be_comparable():
    with pytest.raises(ValueError, match=r"fake has samples of shape \(3,\), real of shape \(2,\)"):
        estimate(GOOD, torch.rand(8, 3), steps=1)
    pixels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"fake has values in .*, real pixels in \[0, 1\]: bring them"):
        estimate(pixels, torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 1, 4, 4), steps=1, held_out=6)
    require_comparable(side(pixels), side(torch.rand(8, 1, 4, 4), "fake"))


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (1, "held_out=1: of the 8 samples of real hold out at least 2 and leave"),
        (7, "held_out=7"),
        (1.5, "held_out=1.5"),
        (True, "held_out=True: must be a count, or a fraction"),
        (0.9, "held_out=0.9: of the 8"),
    ],
)
def test_unusable_division(held_out, message):
    with pytest.raises(ValueError, match=message):
        side(GOOD, held_out=held_out)


def test_of_a_sampler_a_count_is_held_out():
    with pytest.raises(ValueError, match=r"held_out=0.5: of the sampler real hold out an integer count"):
        side(Draw(lambda n, g: torch.zeros(n, 1)), held_out=0.5)
