import pytest
import torch

from lconvnet.data import crop_and_flip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive(x, padding, generator):
    """One image at a time: pad, cut, mirror; the draws are those the docstring promises."""
    count, _, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    mirrors = torch.randint(0, 2, (count, 1), generator=generator)
    out = []
    for i in range(count):
        padded = torch.zeros(x.shape[1], height + 2 * padding, width + 2 * padding, dtype=x.dtype)
        padded[:, padding : padding + height, padding : padding + width] = x[i]
        top, left = offsets[:, i].tolist()
        crop = padded[:, top : top + height, left : left + width]
        out.append(torch.flip(crop, (2,)) if mirrors[i] else crop)
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "padding"), [((64, 3, 8, 8), 4), ((33, 1, 5, 9), 2), ((7, 2, 3, 4), 0), ((5, 3, 4, 4), 6)]
)
def test_equals_the_naive_oracle(shape, padding, dtype):
    x = (torch.rand(shape, generator=generator(1)) * 255).to(dtype)
    got = crop_and_flip(x, padding=padding, generator=generator(2))
    assert got.dtype == dtype
    assert torch.equal(got, naive(x, padding, generator(2)))  # copies of pixels: exact


def test_every_output_is_a_crop_or_a_mirrored_crop_and_all_occur():
    # 4,000 draws over 18 outcomes: each is expected 222 times, with a deviation of 14.5; 5 deviations are allowed
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))[0]
    crops = [padded[:, i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    outcomes = torch.stack(crops + [crop.flip(-1) for crop in crops])
    got = crop_and_flip(x.expand(4000, 1, 3, 4), padding=1, generator=generator())
    matches = (got[:, None] == outcomes[None]).flatten(2).all(-1)
    assert (matches.sum(1) == 1).all()
    counts = matches.sum(0)
    assert (counts - 4000 / 18).abs().max() < 5 * 14.5


def test_randomness_comes_from_the_generator_only():
    x = torch.rand(16, 3, 8, 8, generator=generator(1))
    state = torch.get_rng_state()
    first = crop_and_flip(x, generator=generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, crop_and_flip(x, generator=generator(3)))
    assert not torch.equal(first, crop_and_flip(x, generator=generator(4)))


def test_default_padding_is_four_and_input_is_left_alone():
    x = torch.rand(8, 1, 6, 6, generator=generator(1))
    copy = x.clone()
    got = crop_and_flip(x, generator=generator(5))
    assert torch.equal(got, crop_and_flip(x, padding=4, generator=generator(5)))
    assert torch.equal(x, copy)


def test_empty_batch():
    assert crop_and_flip(torch.zeros(0, 3, 4, 4), generator=generator()).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("padding", [-1, 1.5, True])
def test_refuses_padding(padding):
    with pytest.raises(ValueError, match=f"padding must be an integer of at least 0, got {padding}"):
        crop_and_flip(torch.zeros(1, 1, 2, 2), padding=padding, generator=generator())


def test_refuses_a_single_image():
    with pytest.raises(ValueError, match=r"x must be a batch .*\(3, 4, 4\): add a batch dimension"):
        crop_and_flip(torch.zeros(3, 4, 4), generator=generator())
