"""Images for and from a generator: streams of batches, grids of images, and the generator's file.

*A stream has no position*: batch k is a function of (seed, k), so any process can ask for batches in any order.
"""

from __future__ import annotations

import io
import math
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from lconvnet import atomic
from lconvnet.data import Images, batch
from lconvnet.extras import require
from lconvnet.models import DCGANGenerator
from lconvnet.training import engine
from lconvnet.training.options import require_counts, require_seed

CHUNK = 256  # images generated at a time, for any batch size
GAP = 2  # pixels between two images in a grid
Size = Annotated[int, Field(ge=1, le=2**12)]


class RealSamples:
    """Batches of images drawn from a set uniformly, with replacement.

    >>> from lconvnet.data import load
    >>> stream = RealSamples(load("digits", limit=50).train, seed=0)
    >>> stream.sample(8, 3).shape, torch.equal(stream.sample(8, 3), stream.sample(8, 3))
    (torch.Size([8, 1, 28, 28]), True)
    """

    def __init__(self, images: Images, seed: int) -> None:
        require_seed(seed)
        if not len(images):
            raise ValueError(f"images: {images.name!r} holds none to draw from")
        self.images, self.seed = images, seed

    def sample(self, count: int, step: int) -> Tensor:
        """Batch number `step`: float32 ``(count, C, H, W)`` in [0, 1]."""
        require_counts(count=count)
        draws = engine.generator(self.seed, "real", 0, step)
        return batch(self.images, torch.randint(len(self.images), (count,), generator=draws))[0]


class GeneratedSamples:
    """Batches of a generator's images, on its device, from a copy of its present weights in eval mode.

    >>> stream = GeneratedSamples(DCGANGenerator(latent=8, width=4), seed=0)
    >>> stream.sample(5, 2).shape, torch.equal(stream.sample(5, 2), stream.sample(5, 3))
    (torch.Size([5, 3, 32, 32]), False)
    """

    def __init__(self, generator: DCGANGenerator, seed: int) -> None:
        require_seed(seed)
        self.generator, self.seed = deepcopy(generator).requires_grad_(False), seed

    def sample(self, count: int, step: int) -> Tensor:
        """Batch number `step`: ``(count, C, H, W)`` in [0, 1]."""
        require_counts(count=count)
        return generated(self.generator, latents(self.generator, count, self.seed, "generated", step))


def latents(generator: DCGANGenerator, count: int, seed: int, purpose: str, step: int) -> Tensor:
    """Standard normal vectors ``(count, latent)``, a function of (seed, purpose, step), on the generator's device."""
    like = next(generator.parameters())
    return torch.randn(count, generator.latent, generator=engine.generator(seed, purpose, 0, step)).to(like)


@torch.no_grad()
def generated(generator: DCGANGenerator, latents: Tensor) -> Tensor:
    """The images ``(B, C, H, W)`` of latent vectors in eval mode; the generator is left as it was."""
    training = generator.training
    try:
        generator.eval()
        return torch.cat([generator(part) for part in latents.split(CHUNK)])
    finally:
        generator.train(training)


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images ``(N, C, H, W)`` in [0, 1] as one uint8 picture ``(height, width, C)``, row by row, nearly square.

    Black gaps of 2 pixels separate them; empty places are black. Raises `ValueError` for another shape.

    >>> grid(torch.ones(3, 1, 4, 4)).shape
    torch.Size([10, 10, 1])
    """
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(f"images of shape {tuple(images.shape)}: expected (N, 1 or 3, H, W) with at least one image")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    pixels = images.detach().cpu().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    cells = F.pad(pixels, (0, GAP, 0, GAP, 0, 0, 0, rows * columns - len(images)))
    whole = cells.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return whole[:-GAP, :-GAP]


def png(picture: Tensor) -> bytes:
    """A uint8 picture ``(height, width, C)`` as the bytes of a PNG (extra `data`), a function of the picture."""
    array = picture.numpy()
    image = require("PIL.Image", "data").fromarray(array if array.shape[2] == 3 else array[..., 0])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class Facts(BaseModel):
    """The arguments that a generator was built with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal["lconvnet-generator-1"] = "lconvnet-generator-1"
    latent: Size
    channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=8, le=2**10)]
    width: Size

    @classmethod
    def of(cls, generator: DCGANGenerator) -> Facts:
        """The facts of a generator."""
        return cls(**{name: getattr(generator, name) for name in cls.model_fields if name != "format"})

    def build(self) -> DCGANGenerator:
        """A generator without weights in memory. Raises `ValueError` for a size that is not a power of two."""
        with torch.device("meta"):
            return DCGANGenerator(self.latent, self.channels, self.image_size, self.width)


def encode_generator(generator: DCGANGenerator) -> bytes:
    """Weights and facts as safetensors, without executable content; equal generators give equal bytes."""
    return atomic.encode_safetensors(generator.state_dict(), metadata=Facts.of(generator).model_dump_json())


def save_generator(generator: DCGANGenerator, path: str | Path) -> None:
    """Write what `load_generator` reads, atomically. Raises `atomic.WriteError`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "generator.safetensors"
    >>> generator = DCGANGenerator(latent=8, width=4)
    >>> save_generator(generator, path)
    >>> z = torch.randn(2, 8)
    >>> torch.equal(load_generator(path)(z), generator.eval()(z))
    True
    """
    atomic.write_bytes(path, encode_generator(generator))


def load_generator(path: str | Path) -> DCGANGenerator:
    """Return the generator saved at `path`, in eval mode, on the CPU.

    Raises `ValueError` for a file that is missing, truncated, pickled, foreign, or inconsistent.
    """
    facts, tensors = _read(Path(path))
    try:
        generator = Facts.model_validate_json(facts).build()
        _check(generator, tensors)
        generator.load_state_dict(tensors, assign=True)
    except (ValidationError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: not a generator of this package, or damaged ({reason}); save it again") from None
    return generator.eval()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a generator.safetensors written by gan.save_generator")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = (file.metadata() or {}).get("lconvnet", "")
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); save it again") from None


def _check(generator: DCGANGenerator, tensors: dict[str, Tensor]) -> None:
    """Raise `ValueError` for a tensor that does not fit its place, or has values that are not finite."""
    places = generator.state_dict()
    for name, value in tensors.items():
        place = places.get(name, value)
        same = value.is_floating_point() if place.is_floating_point() else value.dtype == place.dtype
        if not same or not bool(value.isfinite().all()):
            raise ValueError(f"{name} ({value.dtype}) holds values that are not finite numbers of its kind")
