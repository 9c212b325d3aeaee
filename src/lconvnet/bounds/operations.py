"""One record per operation: everything that the library knows about a module type or a torch function.

An operation without a record is refused, never assumed to be 1-Lipschitz. Keys are exact types, because a subclass may
compute something else. :func:`register_operation` adds a class or function of yours.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter
from torch import Tensor, nn
from typing_extensions import TypedDict

from lconvnet import layers
from lconvnet.bounds import convolution, module_rules, propagation
from lconvnet.bounds import forward_error as rounding
from lconvnet.bounds import torch_functions as read
from lconvnet.bounds.forward_error import RoundingRule
from lconvnet.bounds.types import AppliedFunction, ModuleCall

Size = Annotated[int, Field(ge=1, le=2**20)]
Side = Annotated[int, Field(ge=1, le=2**10)]
Pad = Annotated[int, Field(ge=0, le=2**10)]
Crop = Annotated[int, Field(ge=-(2**10), le=2**10)]
Axis = Annotated[int, Field(ge=-8, le=7)]
Sides: TypeAlias = Side | Annotated[tuple[Side, ...], Field(min_length=1, max_length=2)]
Pads: TypeAlias = Pad | Annotated[tuple[Pad, ...], Field(min_length=1, max_length=2)]
Divisor: TypeAlias = Annotated[int, Field(ge=-(2**20), le=2**20)] | None
Output: TypeAlias = Side | None
Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=1024)]


@dataclass(frozen=True)
class Operation:
    """The record of one operation.

    Attributes:
        kind: the module class, a registered torch function, or the name of the nodes of a built-in function.
        rule: gives the Lipschitz constant. For a module: from its call and the method, a :class:`LayerBound`. For a
            built-in function: from the propagation and the node (:mod:`lconvnet.bounds.propagation`). For a registered
            operation: from its call, a number.
        rounding: bounds the rounding of the result (:mod:`lconvnet.bounds.forward_error`); None if it is unknown.
        check: raises ``ValueError`` for a module that is unsound as configured.
        images: whether the input must be an image. Given a vector, such a module would read the batch as the channels.
        calls: torch functions and methods that compute the operation. For a module, each with a function that makes the
            module from the same arguments; for a function, each with a reader that turns a call into nodes
            (:mod:`lconvnet.bounds.torch_functions`).
        label: the name of a built-in module in a file.
        save: types of the constructor arguments that a file holds, each read from the attribute of the same name; None
            if a file cannot hold the operation.
        registered: whether a user registered it. Then its constructor and class name are not known here.
    """

    kind: Any
    rule: Callable[..., Any]
    rounding: RoundingRule | None
    label: str = ""
    save: Mapping[str, Any] | None = None
    check: Callable[[ModuleCall], None] | None = None
    images: bool = False
    calls: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    registered: bool = False

    @property
    def name(self) -> str:
        """The operation of its nodes in a graph."""
        if isinstance(self.kind, str):
            return self.kind
        return qualified(self.kind) if self.registered else self.kind.__name__


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Flatten:
    return nn.Flatten(start_dim, end_dim)


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


_ONE, _EXACT = module_rules.norm_one, rounding.no_rounding
_PAIR, _CROPS = tuple[Side, Side], {"padding": tuple[Crop, Crop, Crop, Crop]}
_NORMALISED = {
    "num_features": Size, "eps": float, "momentum": float | None, "affine": bool, "track_running_stats": Literal[True],
}  # fmt: skip
_BATCH_NORM: Mapping[str, Any] = {"save": _NORMALISED, "check": module_rules.check_batch_norm}

BUILT_IN: tuple[Operation, ...] = (
    Operation(nn.Conv2d, convolution.convolution, rounding.linear, "conv2d", {
        "in_channels": Size, "out_channels": Size, "kernel_size": _PAIR, "stride": _PAIR,
        "padding": tuple[Pad, Pad] | Literal["same", "valid"], "padding_mode": Literal["circular", "zeros"],
        "dilation": _PAIR, "groups": Size, "bias": bool,
    }, check=convolution.check_convolution, images=True),
    Operation(nn.ConvTranspose2d, convolution.transposed, rounding.linear, "conv-transpose2d", {
        "in_channels": Size, "out_channels": Size, "kernel_size": _PAIR, "stride": _PAIR, "padding": tuple[Pad, Pad],
        "output_padding": tuple[Pad, Pad], "dilation": _PAIR, "groups": Size, "bias": bool,
    }, check=convolution.check_pairs, images=True),
    Operation(nn.Linear, module_rules.linear, rounding.linear, "linear",
              {"in_features": Size, "out_features": Size, "bias": bool}),
    Operation(nn.ZeroPad2d, _ONE, _EXACT, "zero-pad", _CROPS, images=True),
    Operation(nn.ReflectionPad2d, module_rules.repeating, _EXACT, "reflection-pad", _CROPS,
              check=module_rules.check_repeating, images=True),
    Operation(nn.ReplicationPad2d, module_rules.repeating, _EXACT, "replication-pad", _CROPS,
              check=module_rules.check_repeating, images=True),
    Operation(nn.Flatten, _ONE, _EXACT, "flatten", {"start_dim": Axis, "end_dim": Axis},
              check=module_rules.check_flatten, calls=dict.fromkeys((torch.flatten, "flatten"), _flatten)),
    Operation(nn.Identity, _ONE, _EXACT, "identity", {}),
    Operation(nn.ReLU, _ONE, _EXACT, "relu", {"inplace": (bool, False)},
              calls=dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU)),
    Operation(nn.Dropout, _ONE, _EXACT, "dropout", {"p": float, "inplace": bool}, check=module_rules.check_dropout),
    Operation(nn.Dropout2d, _ONE, _EXACT, "dropout2d", {"p": float, "inplace": bool}, check=module_rules.check_dropout),
    Operation(nn.BatchNorm1d, module_rules.batch_norm, rounding.normalized, "batch-norm1d", **_BATCH_NORM),
    Operation(nn.BatchNorm2d, module_rules.batch_norm, rounding.normalized, "batch-norm2d", **_BATCH_NORM),
    Operation(nn.AvgPool2d, module_rules.average, rounding.average, "avg-pool", {
        "kernel_size": Sides, "stride": Sides, "padding": Pads, "ceil_mode": bool, "count_include_pad": bool,
        "divisor_override": Divisor,
    }, check=module_rules.check_average, images=True, calls={F.avg_pool2d: nn.AvgPool2d}),
    Operation(nn.AdaptiveAvgPool2d, module_rules.adaptive, rounding.average, "adaptive-avg-pool",
              {"output_size": Output | tuple[Output, Output]}, check=module_rules.check_adaptive, images=True,
              calls={F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d}),
    Operation(nn.MaxPool2d, _ONE, _EXACT, "max-pool", {
        "kernel_size": Sides, "stride": Sides, "padding": Pads, "dilation": Sides, "return_indices": Literal[False],
        "ceil_mode": bool,
    }, check=module_rules.check_maximum, images=True, calls={F.max_pool2d: _max_pool}),
    Operation(nn.LPPool2d, module_rules.power, rounding.power, "lp-pool",
              {"norm_type": int | float, "kernel_size": Sides, "stride": Sides | None, "ceil_mode": bool},
              check=module_rules.check_power, images=True, calls={F.lp_pool2d: nn.LPPool2d}),
    Operation(nn.PixelShuffle, _ONE, _EXACT, "pixel-shuffle", {"upscale_factor": Side}, images=True,
              calls={F.pixel_shuffle: nn.PixelShuffle}),
    Operation(nn.PixelUnshuffle, _ONE, _EXACT, "pixel-unshuffle", {"downscale_factor": Side}, images=True,
              calls={F.pixel_unshuffle: nn.PixelUnshuffle}),
    Operation(layers.MaxMin, _ONE, _EXACT, "maxmin", {"dim": Axis}, check=module_rules.check_sorting),
    Operation(layers.GroupSort, _ONE, _EXACT, "groupsort", {"group_size": Size, "dim": Axis},
              check=module_rules.check_sorting),
    Operation(layers.FullSort, _ONE, _EXACT, "fullsort", {"dim": Axis}, check=module_rules.check_sorting),
    Operation(layers.Abs, _ONE, _EXACT, "abs", {}, calls=dict.fromkeys((operator.abs, torch.abs, "abs"), layers.Abs)),
    Operation(layers.TwoSidedReLU, _ONE, _EXACT, "two-sided-relu", {}),
    Operation(layers.Scale, module_rules.scale, rounding.scaled, "scale", {"factor": float}),
    Operation(layers.InvertibleDownsampling, _ONE, _EXACT, "downsampling", {"factor": Side}, images=True),
    Operation(layers.InvertibleUpsampling, _ONE, _EXACT, "upsampling", {"factor": Side}, images=True),
    Operation(layers.NearestUpsampling, module_rules.upsampling, _EXACT, "nearest-upsampling", {"factor": Side},
              images=True),
    Operation(layers.Normalize, module_rules.normalization, rounding.standardized, "normalize",
              {"mean": Channels, "std": Channels}, images=True),
    Operation(layers.NormPool, _ONE, rounding.power, "norm-pool", {"factor": Side}, images=True),
    Operation("add", propagation.added, rounding.added,
              calls=dict.fromkeys((operator.add, torch.add, "add"), read.read_add)),
    Operation("subtract", propagation.added, rounding.added, calls=dict.fromkeys(
        (operator.sub, torch.sub, torch.subtract, "sub", "subtract"), read.read_subtract)),
    Operation("shift", propagation.moved, rounding.shifted),
    Operation("multiply", propagation.multiplied, rounding.scaled, calls=dict.fromkeys(
        (operator.mul, torch.mul, torch.multiply, "mul", "multiply"), read.read_multiply)),
    Operation("divide", propagation.divided, rounding.scaled, calls=dict.fromkeys(
        (operator.truediv, torch.div, torch.divide, "div", "divide"), read.read_divide)),
    Operation("negate", propagation.moved, _EXACT, calls=dict.fromkeys(
        (operator.neg, torch.neg, torch.negative, "neg", "negative"), read.read_negate)),
    Operation("concatenate", propagation.concatenated, rounding.concatenated,
              calls=dict.fromkeys((torch.cat, torch.concat, torch.concatenate), read.read_concatenate)),
    Operation("slice", propagation.sliced, _EXACT, calls={
        **dict.fromkeys((torch.chunk, torch.split, "chunk", "split"), read.read_parts),
        **dict.fromkeys((torch.narrow, "narrow"), read.read_narrow),
        operator.getitem: read.read_getitem,
    }),
    Operation("reshape", propagation.moved, _EXACT,
              calls=dict.fromkeys((torch.reshape, "reshape", "view"), read.read_reshape)),
    Operation("permute", propagation.moved, _EXACT, calls={
        **dict.fromkeys((torch.permute, "permute"), read.read_permute),
        **dict.fromkeys((torch.transpose, "transpose"), read.read_transpose),
    }),
    Operation("mean", propagation.averaged, rounding.average,
              calls=dict.fromkeys((torch.mean, "mean"), read.read_mean)),
    Operation("hypot", propagation.hypot, rounding.hypot, calls=dict.fromkeys((torch.hypot, "hypot"), read.read_hypot)),
)  # fmt: skip
"""All operations. A function has the name of its nodes."""

MODULES = {record.kind: record for record in BUILT_IN if not isinstance(record.kind, str)}
FUNCTIONS = {record.kind: record for record in BUILT_IN if isinstance(record.kind, str)}
CALLS = {target: record for record in BUILT_IN for target in record.calls}

READ_ONLY: Mapping[Any, Callable[..., Any]] = {
    "size": read.read_size,
    getattr: read.read_getattr,
    F.dropout: read.read_dropout,
    "contiguous": read.read_contiguous,
}
"""Calls that compute nothing: sizes, and functions that return their input."""

SIZES = (operator.getitem, getattr, "size")
"""Calls that may read sizes, so they need no tensor that depends on the input."""

ARITHMETIC = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.neg, operator.pow,
    math.sqrt,
)  # fmt: skip
"""Arithmetic of sizes, evaluated while a graph is built."""

REGISTERED: dict[Any, Operation] = {}
"""Operations that users registered, by class, torch function or name of a method."""


def qualified(kind: Any) -> str:
    """The name of a class or torch function with that of its module."""
    named = None if isinstance(kind, type) else torch.overrides.resolve_name(kind)
    return named or f"{kind.__module__}.{kind.__qualname__}"


def operation_of(module: nn.Module) -> Operation | None:
    """The record of a module, or of the registered function that it applies, if there is one."""
    kind = _key(module.function) if type(module) is AppliedFunction else type(module)
    return REGISTERED.get(kind, MODULES.get(kind))


def operation_named(name: str) -> Operation | None:
    """The record of the nodes with this operation, if there is one."""
    found = (record for record in (*MODULES.values(), *FUNCTIONS.values(), *REGISTERED.values()) if record.name == name)
    return next(found, None)


def register_operation(
    kind: Any,
    *,
    rule: Callable[[ModuleCall], float],
    rounding: RoundingRule | None = None,
    save: Mapping[str, Any] | None = None,
) -> None:
    """Add a module class or a torch function to the known operations.

    It then counts as one operation, and its forward pass is not read: :func:`lconvnet.lipschitz_bound` bounds it,
    :func:`lconvnet.certify` certifies it, :func:`lconvnet.save` and :func:`lconvnet.load` keep it. The library trusts
    your rule for a single example. That examples are not mixed is checked on batches of one, two and three. Register it
    again in every process.

    Args:
        kind: an exact class of modules (a subclass needs its own record), or a function of torch or method of tensors
            that is called with one tensor and plain numbers. ``torch.tanh`` and ``torch.Tensor.tanh`` are registered
            separately.
        rule: takes the :class:`lconvnet.bounds.ModuleCall` (``module``, ``name``, ``input_shape`` or None) and returns
            a finite number that is never below the l2 Lipschitz constant for one example. The arguments of a function
            are ``call.module.arguments`` and ``call.module.keywords``.
        rounding: :data:`lconvnet.bounds.no_rounding`, :func:`lconvnet.bounds.relative_rounding`, or a rule of your own
            (:mod:`lconvnet.bounds.forward_error`). Without it the levels "sound" and "analytic" are refused with an
            error that names the operation, because both account for the rounding of the evaluation.
        save: type of each constructor argument that a file holds, as pydantic reads it; the module has each as an
            attribute of the same name. Weights are always saved. Without it saving is refused, unless you pass the
            class to :func:`lconvnet.save` in ``classes``. Functions do not need it: they are saved with the module
            that calls them.

    Raises:
        ValueError: for a kind that is neither, is built in or was registered before, and for wrong arguments.

    The independent checker ``lconvnet_verify`` has its own tables and refuses a network with a registered operation.
    So it cannot prove certificates of such a network.

    >>> import lconvnet as lc
    >>> class ScaledTanh(nn.Module):
    ...     def __init__(self, scale):
    ...         super().__init__()
    ...         self.scale = scale
    ...     def forward(self, x):
    ...         return self.scale * torch.tanh(x)
    >>> lc.register_operation(
    ...     ScaledTanh,
    ...     rule=lambda call: abs(call.module.scale),
    ...     rounding=lc.bounds.relative_rounding(8),  # tanh to within four units in the last place, and a product
    ...     save={"scale": float},
    ... )
    >>> network = nn.Sequential(ScaledTanh(0.5), nn.Flatten()).eval()
    >>> lc.lipschitz_bound(network).upper
    0.5
    >>> str(lc.certify(network, torch.tensor([[0.9, 0.1]]), level="sound").reason[0])
    'certified'
    >>> del REGISTERED[ScaledTanh]
    """
    key = _key(kind)
    if isinstance(kind, type):
        known = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, layers.Sum, layers.Concat, AppliedFunction)
        if not issubclass(kind, nn.Module) or issubclass(kind, layers.ConstrainedLayer) or kind in known:
            raise ValueError(f"kind={kind!r} must be a class of modules with a forward pass of its own")
    elif not isinstance(kind, Hashable) or not callable(kind) or kind not in torch.overrides.get_testing_overrides():
        raise ValueError(
            f"kind={kind!r} must be a class of modules, a function of torch such as torch.tanh, or a method such as "
            "torch.Tensor.tanh: make anything else a module"
        )
    elif save is not None:
        raise ValueError(f"save={save!r} is for modules: {kind.__name__} is saved with the module that calls it")
    if key in REGISTERED or key in MODULES or key in CALLS or key in READ_ONLY or kind is nn.CircularPad2d:
        way_out = "derive a class" if isinstance(kind, type) else "call it in a module"
        raise ValueError(f"kind={kind.__name__} has a rule already: {way_out} and register that")
    _require_call("rule", rule, "call")
    if rounding is not None:
        _require_call("rounding", rounding, "node, inputs, setting")
    if save is not None:
        _require_arguments(kind, save)
    record = Operation(kind, rule, rounding, save=save, registered=True)
    for other in [other for other, known in REGISTERED.items() if known.name == record.name]:
        del REGISTERED[other]  # the same class, defined again as in a notebook
    REGISTERED[key] = record


def _key(kind: Any) -> Any:
    """The key under which a call of a function is recorded: the name for a method of tensors."""
    name = getattr(kind, "__name__", "")
    return name if not isinstance(kind, type) and getattr(Tensor, name, None) is kind else kind


def _require_call(name: str, function: Any, parameters: str) -> None:
    """Raise ``ValueError`` if a function cannot be called with these positional arguments."""
    try:
        signature(function).bind(*parameters.split(", "))
    except (TypeError, ValueError):
        raise ValueError(f"{name}={function!r} must be a function that takes ({parameters})") from None


def _require_arguments(kind: Any, save: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless these are typed arguments of the constructor, and all that it requires."""
    if not isinstance(save, Mapping):
        raise ValueError(f'save={save!r} must give each constructor argument its type, such as {{"scale": float}}')
    parameters = signature(kind).parameters
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needed = {name for name in named if parameters[name].default is Parameter.empty}
    for name in save:
        if name not in named and not open_ended:
            raise ValueError(f"save has {name!r}, which is not an argument of {kind.__name__}{signature(kind)}")
    if missing := sorted(needed - save.keys()):
        raise ValueError(f"save lacks {missing[0]!r}, which {kind.__name__}{signature(kind)} needs: give its type")
    saved_arguments(kind, save)


def saved_arguments(kind: type[nn.Module], save: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """The adapter for the saved arguments of a registered class; ValueError if something is not a type."""
    form: Any = TypedDict(kind.__name__, dict(save))  # pyright: ignore[reportArgumentType]
    form.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    try:
        return TypeAdapter(form)
    except (PydanticUserError, NameError, TypeError) as error:
        raise ValueError(f"save={dict(save)!r} must give types that pydantic knows: {error}") from None
