"""The architecture of a baked network as data: a frozen model for each operation, a literal table to find it.

Building from such data imports nothing by name, and every size in it is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from lconvnet import layers

Size = Annotated[int, Field(ge=1, le=2**20)]
Side = Annotated[int, Field(ge=1, le=2**10)]
Pad = Annotated[int, Field(ge=0, le=2**10)]
Axis = Annotated[int, Field(ge=-4, le=3)]


class Entry(BaseModel):
    """One operation of a saved network; its fields are attributes and constructor arguments of `module`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    module: ClassVar[type[nn.Module]]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]

    def build(self) -> nn.Module:
        """Return the module, on the device of the surrounding context."""
        return self.module(**self.model_dump(exclude={"name", "op"}))


Branches = Annotated[
    tuple[tuple[Annotated["Operation", Field(discriminator="op")], ...], ...], Field(min_length=1, max_length=2**10)
]


def build(entries: Sequence[Entry]) -> nn.Sequential:
    """Return the operations as a network."""
    return nn.Sequential(OrderedDict((entry.name, entry.build()) for entry in entries))


class Conv2d(Entry):
    """A convolution with circular or zero padding."""

    module = nn.Conv2d
    op: Literal["conv2d"] = "conv2d"
    in_channels: Size
    out_channels: Size
    kernel_size: tuple[Side, Side]
    stride: tuple[Side, Side]
    padding: tuple[Pad, Pad]
    padding_mode: Literal["circular", "zeros"]
    dilation: tuple[Side, Side]
    groups: Size
    bias: bool


class Linear(Entry):
    """A dense layer."""

    module = nn.Linear
    op: Literal["linear"] = "linear"
    in_features: Size
    out_features: Size
    bias: bool


class CircularPad(Entry):
    """Circular padding (left, right, top, bottom) before an unpadded convolution."""

    module = nn.CircularPad2d
    op: Literal["circular-pad"] = "circular-pad"
    padding: tuple[Pad, Pad, Pad, Pad]


class ZeroPad(Entry):
    """Zero padding (left, right, top, bottom)."""

    module = nn.ZeroPad2d
    op: Literal["zero-pad"] = "zero-pad"
    padding: tuple[Pad, Pad, Pad, Pad]


class Flatten(Entry):
    """Images to vectors."""

    module = nn.Flatten
    op: Literal["flatten"] = "flatten"
    start_dim: Axis
    end_dim: Axis


class MaxMin(Entry):
    """Pairs of channels, the larger first."""

    module = layers.MaxMin
    op: Literal["maxmin"] = "maxmin"
    dim: Axis


class GroupSort(Entry):
    """Sorting in groups of channels."""

    module = layers.GroupSort
    op: Literal["groupsort"] = "groupsort"
    group_size: Size
    dim: Axis


class FullSort(Entry):
    """Sorting of all channels."""

    module = layers.FullSort
    op: Literal["fullsort"] = "fullsort"
    dim: Axis


class Abs(Entry):
    """Absolute values."""

    module = layers.Abs
    op: Literal["abs"] = "abs"


class ReLU(Entry):
    """Positive parts."""

    module = nn.ReLU
    op: Literal["relu"] = "relu"


class Identity(Entry):
    """Nothing."""

    module = nn.Identity
    op: Literal["identity"] = "identity"


class Scale(Entry):
    """Multiplication by a constant."""

    module = layers.Scale
    op: Literal["scale"] = "scale"
    factor: float


class Downsampling(Entry):
    """Invertible downsampling."""

    module = layers.InvertibleDownsampling
    op: Literal["downsampling"] = "downsampling"
    factor: Side


class Upsampling(Entry):
    """Invertible upsampling."""

    module = layers.InvertibleUpsampling
    op: Literal["upsampling"] = "upsampling"
    factor: Side


class NearestUpsampling(Entry):
    """Every pixel as factor x factor equal ones."""

    module = layers.NearestUpsampling
    op: Literal["nearest-upsampling"] = "nearest-upsampling"
    factor: Side


class Normalize(Entry):
    """Input normalisation, a mean and a standard deviation for each channel."""

    module = layers.Normalize
    op: Literal["normalize"] = "normalize"
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=1024)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=1024)]


class TwoSidedReLU(Entry):
    """Positive parts and negative parts."""

    module = layers.TwoSidedReLU
    op: Literal["two-sided-relu"] = "two-sided-relu"


class NormPool(Entry):
    """Norms of windows side by side."""

    module = layers.NormPool
    op: Literal["norm-pool"] = "norm-pool"
    factor: Side


class Sum(Entry):
    """The sum of sequences of operations on one input."""

    module = layers.Sum
    op: Literal["sum"] = "sum"
    branches: Branches

    def build(self) -> nn.Module:
        """Return the module with its branches."""
        return layers.Sum(*map(build, self.branches))


class Concat(Entry):
    """The outputs of sequences of operations on one input, one behind the other."""

    module = layers.Concat
    op: Literal["concat"] = "concat"
    branches: Branches

    def build(self) -> nn.Module:
        """Return the module with its branches."""
        return layers.Concat(*map(build, self.branches))


Operation: TypeAlias = (
    Conv2d | Linear | CircularPad | ZeroPad | Flatten | MaxMin | GroupSort | FullSort | Abs | ReLU | Identity
    | Scale | Downsampling | Upsampling | NearestUpsampling | Normalize | TwoSidedReLU | NormPool
    | Sum | Concat
)  # fmt: skip
Sum.model_rebuild()
Concat.model_rebuild()
OPERATIONS: Mapping[type[nn.Module], type[Entry]] = {entry.module: entry for entry in Entry.__subclasses__()}


def architecture(network: nn.Module) -> tuple[Any, ...]:
    """Return the operations of a baked network in order; ValueError names the layer that is not one of them.

    >>> [entry.op for entry in architecture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))]
    ['flatten', 'linear']
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(
            f"network is a {type(network).__name__}; save takes the nn.Sequential that bake(model) returns"
        )
    # Not named_children: it leaves out a module that is used a second time.
    children = [item for item in network.named_modules(remove_duplicate=False) if item[0] and "." not in item[0]]
    return tuple(_entry(name, module) for name, module in children)


def _entry(name: str, module: nn.Module) -> Entry:
    kind = OPERATIONS.get(type(module))
    if kind is None:
        raise ValueError(
            f"layer {name!r} is a {type(module).__name__}; save takes baked networks only, use bake(model)"
        )
    fields = {field: getattr(module, field) for field in kind.model_fields if field not in ("op", "name", "bias")}
    if "branches" in kind.model_fields:
        fields["branches"] = tuple(architecture(branch) for branch in cast(nn.ModuleList, module.branches))
    if "bias" in kind.model_fields:
        fields["bias"] = module.bias is not None
    try:
        return kind(name=name, **fields)
    except ValidationError as error:
        raise ValueError(f"layer {name!r} ({module}) cannot be saved: {error.errors()[0]['msg']}") from None
