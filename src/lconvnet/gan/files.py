"""A generator as one safetensors file: weights and the arguments of its constructor, nothing that could run code.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "generator.safetensors"
>>> generator = DCGANGenerator(latent=8, width=4)
>>> save_generator(generator, path)
>>> z = torch.randn(2, 8)
>>> torch.equal(load_generator(path)(z), generator.eval()(z))
True
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from lconvnet import atomic
from lconvnet.models import DCGANGenerator

Size = Annotated[int, Field(ge=1, le=2**12)]


class Facts(BaseModel):
    """The arguments that a generator was built with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal["lconvnet-generator-1"] = "lconvnet-generator-1"
    latent: Size
    channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=8, le=2**10)]
    width: Size

    def build(self) -> DCGANGenerator:
        """A generator without weights in memory. Raises `ValueError` for a size that is no power of two."""
        with torch.device("meta"):
            return DCGANGenerator(self.latent, self.channels, self.image_size, self.width)


def facts_of(generator: DCGANGenerator) -> Facts:
    """The arguments that a generator was built with."""
    return Facts(**{name: getattr(generator, name) for name in Facts.model_fields if name != "format"})


def save_generator(generator: DCGANGenerator, path: str | Path) -> None:
    """Write weights and facts, atomically; equal generators give equal bytes. Raises `atomic.WriteError`."""
    atomic.write_safetensors(path, generator.state_dict(), metadata=facts_of(generator).model_dump_json())


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
        raise ValueError(f"{path}: no generator of this package, or damaged ({reason}); save it again") from None
    return generator.eval()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; name a generator.safetensors written by gan.save_generator")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = (file.metadata() or {}).get("lconvnet", "")
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({error}); save it again") from None


def _check(generator: DCGANGenerator, tensors: dict[str, Tensor]) -> None:
    """Raise `ValueError` for a tensor of another kind than its place, or with values that are not finite."""
    places = generator.state_dict()
    for name, value in tensors.items():
        place = places.get(name, value)
        same = value.is_floating_point() if place.is_floating_point() else value.dtype == place.dtype
        if not same or not bool(value.isfinite().all()):
            raise ValueError(f"{name} ({value.dtype}) holds values that are not finite numbers of its kind")
