"""The generator whose samples a critic tells from real images (Radford, Metz & Chintala, ICLR 2016: DCGAN)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lconvnet.kernels.base import require_positive

START = 4  # side of the image that the latent vector is projected to


class DCGANGenerator(nn.Sequential):
    r"""Latent vectors to images: a projection to 4×4, then transposed 4×4 convolutions of stride 2.

    With $n = \log_2(\text{image size}/4)$ doublings the projection has $2^{n-1}\,$`width` channels, halved by every
    doubling; batch normalisation and ReLU after all but the last convolution (Radford et al. 2016, figure 1, which is
    `width=128` at 64×64). The last activation is a sigmoid, since images are in [0, 1] here. The paper's are in
    [-1, 1], with tanh; as $(1+\tanh a)/2 = \mathrm{sigmoid}(2a)$ the images are the same, and distances between them
    half as large.

    In training mode an image depends on its whole batch, in eval mode on its latent vector alone.

    Args:
        latent: dimension of the latent vectors, standard normal.
        channels: 1 or 3, channels of the images.
        image_size: side of the images, a power of two from 8 on; 32 and 64 in the paper.
        width: channels before the last convolution.

    Shapes: ``(B, latent)`` to ``(B, channels, image_size, image_size)``. Raises `ValueError` for anything else.

    >>> import torch
    >>> images = DCGANGenerator(latent=16, width=8)(torch.randn(2, 16))
    >>> images.shape, bool((images >= 0).all() and (images <= 1).all())
    (torch.Size([2, 3, 32, 32]), True)
    """

    def __init__(self, latent: int = 128, channels: int = 3, image_size: int = 32, width: int = 64) -> None:
        require_positive(latent=latent, channels=channels, image_size=image_size, width=width)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: an image is grey (1) or coloured (3)")
        if image_size < 2 * START or image_size & (image_size - 1):
            raise ValueError(f"image_size={image_size}: must be a power of two from 8 on; 32 and 64 are usual")
        super().__init__(_layers(latent, channels, (image_size // START).bit_length() - 1, width))
        self.latent, self.channels, self.image_size, self.width = latent, channels, image_size, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        return self.channels, self.image_size, self.image_size

    def forward(self, latents: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if latents.ndim != 2 or latents.shape[1] != self.latent:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: expected (B, {self.latent})")
        return super().forward(latents)


def _layers(latent: int, channels: int, doublings: int, width: int) -> OrderedDict[str, nn.Module]:
    """The layers by name; a bias before a batch normalisation would do nothing."""
    wide = width * 2 ** (doublings - 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict(unflatten=nn.Unflatten(1, (latent, 1, 1)))
    layers["project"] = nn.ConvTranspose2d(latent, wide, START, bias=False)
    for index in range(1, doublings):
        layers |= _normalised(index, wide)
        layers[f"conv{index}"] = nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1, bias=False)
        wide //= 2
    layers |= _normalised(doublings, wide)
    layers[f"conv{doublings}"] = nn.ConvTranspose2d(wide, channels, 4, stride=2, padding=1)
    layers["sigmoid"] = nn.Sigmoid()
    return layers


def _normalised(index: int, channels: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict({f"norm{index}": nn.BatchNorm2d(channels), f"relu{index}": nn.ReLU()})
