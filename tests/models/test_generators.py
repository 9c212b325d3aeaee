"""The DCGAN generator: shapes, range, structure, and the refusals."""

import pytest
import torch
from torch import nn

from lconvnet.layers import LipschitzConv2d
from lconvnet.models import DCGANGenerator, baselines, dcgan_critic


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [8, 16, 32, 64])
def test_shape_and_range(channels: int, image_size: int) -> None:
    generator = DCGANGenerator(latent=5, channels=channels, image_size=image_size, width=4)
    with torch.no_grad():
        images = generator(10 * torch.randn(7, 5))
    assert images.shape == (7, *generator.image_shape) == (7, channels, image_size, image_size)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.5 < images.max() <= 1


def test_it_is_the_published_network() -> None:
    """Radford et al. 2016, figure 1: 100 -> 4x4x1024 -> 512 -> 256 -> 128 -> 64x64x3."""
    with torch.device("meta"):
        generator = DCGANGenerator(latent=100, channels=3, image_size=64, width=128)
    convs = [layer for layer in generator if isinstance(layer, nn.ConvTranspose2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [
        (100, 1024), (1024, 512), (512, 256), (256, 128), (128, 3)
    ]  # fmt: skip
    assert [layer.num_features for layer in generator if isinstance(layer, nn.BatchNorm2d)] == [1024, 512, 256, 128]


def test_every_parameter_learns() -> None:
    generator = DCGANGenerator(latent=5, channels=1, image_size=16, width=4)
    generator(torch.randn(8, 5)).square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_in_eval_mode_an_image_depends_on_its_latent_vector_alone() -> None:
    generator = DCGANGenerator(latent=5, image_size=8, width=4)
    generator(torch.randn(16, 5))
    z = torch.randn(6, 5)
    whole, part = generator.eval()(z), generator(z[2:4])
    # Another batch size may choose another convolution routine: round-off of float32 sums over 64 terms.
    assert torch.allclose(whole[2:4], part, atol=1e-6)
    generator.train()
    assert not torch.allclose(generator(z)[2:4], generator(z[2:4]), atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 28}, "image_size=28: must be a power of two from 8 on"),
        ({"image_size": 4}, "image_size=4: must be a power of two from 8 on"),
        ({"channels": 2}, r"channels=2: an image is grey \(1\) or coloured \(3\)"),
        ({"latent": 0}, "latent=0 must be a positive integer"),
        ({"width": 1.5}, r"width=1\.5 must be a positive integer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DCGANGenerator(**sizes)


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents of shape \(2, 4\): expected \(B, 5\)"):
        DCGANGenerator(latent=5, width=2)(torch.zeros(2, 4))


def test_the_unconstrained_critic_has_the_shape_of_ours() -> None:
    plain, ours = baselines.unconstrained_critic(3, 32), dcgan_critic(3, 32)

    def convs(model: nn.Sequential) -> list[tuple]:
        layers = [layer for layer in model if isinstance(layer, nn.Conv2d | LipschitzConv2d)]
        return [(layer.in_channels, layer.out_channels) for layer in layers]

    assert convs(plain) == convs(ours) == [(3, 64), (64, 128), (128, 256), (256, 512)]
    assert plain(torch.zeros(1, 3, 32, 32)).shape == ours(torch.zeros(1, 3, 32, 32)).shape == (1, 1)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    with pytest.raises(ValueError, match="width=0 must be a positive integer"):
        baselines.unconstrained_critic(3, 32, width=0)
