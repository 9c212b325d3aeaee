"""The link between YAML and Python: tables of names, and sections made from the options of a callable.

Only the callable itself defines its options. `one_of(LOSSES)` is the type of a key such as
`loss: {name: hinge, eps: 1.5}`: one of a table's callables by its name, with its own options, their types and defaults.
A new loss, attack, network or layer is usable from YAML as soon as it is in its table.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    Strict,
    TypeAdapter,
    WrapValidator,
    create_model,
)
from torch import nn

from lconvnet import attacks, data, gan, layers, losses, models
from lconvnet.models import baselines
from lconvnet.training import optimizers, schedules

Table = Mapping[str, Callable[..., Any]]

CONVS: Table = {
    "bcop": layers.BCOPConv2d,
    "bcop-fixed": layers.FixedBCOPConv2d,
    "rko": layers.RKOConv2d,
    "ossn": layers.OSSNConv2d,
    "svcm": layers.SVCMConv2d,
    "rkl2ne": layers.RKL2NEConv2d,
    "unconstrained": baselines.unconstrained_conv,
}
LINEARS: Table = {
    "orthogonal": layers.OrthogonalLinear,
    "cholesky": layers.CholeskyLinear,
    "spectral-norm": layers.SpectralNormLinear,
    "unconstrained": baselines.unconstrained_linear,
}
ACTIVATIONS: Table = {
    "maxmin": layers.MaxMin,
    "groupsort": layers.GroupSort,
    "fullsort": layers.FullSort,
    "abs": layers.Abs,
    "relu": nn.ReLU,
}
ARCHITECTURES: Table = {
    "mlp": models.mlp,
    "small": models.small_convnet,
    "large": models.large_convnet,
    "dcgan": models.dcgan_critic,
    "kw-small": models.kw_small,
    "kw-large": models.kw_large,
    "kw-resnet": models.kw_resnet,
    "qw": models.qw_convnet,
}
LOSSES: Table = {"hinge": losses.Hinge, "offset-cross-entropy": losses.OffsetCrossEntropy}
OPTIMIZERS: Table = {"adam": optimizers.Adam, "sgd": optimizers.Sgd, "rmsprop": optimizers.Rmsprop}
SCHEDULES: Table = {
    "exponential": schedules.Exponential,
    "one-cycle": schedules.OneCycle,
    "constant": schedules.Constant,
}
OBJECTIVES: Table = {
    "gradient-penalty": gan.GradientPenalty,
    "weight-clipping": gan.WeightClipping,
    "lipschitz": gan.LipschitzCritic,
}
ATTACKS: Table = {
    "pgd": attacks.pgd,
    "fgsm": attacks.fgsm,
    "apgd": attacks.apgd,
    "square": attacks.square,
    "autoattack": attacks.autoattack,
    "deepfool": attacks.deepfool,
    "carlini_wagner": attacks.carlini_wagner,
    "ddn": attacks.ddn,
    "fmn": attacks.fmn,
    "boundary_attack": attacks.boundary_attack,
    "pointwise": attacks.pointwise,
    "hop_skip_jump": attacks.hop_skip_jump,
}
AUGMENTATIONS: Mapping[str, Callable[..., Any] | None] = {"none": None, "crop-flip": data.crop_and_flip}

PARTS = {"conv": CONVS, "linear": LINEARS, "activation": ACTIVATIONS}


class Section(BaseModel):
    """A section of a configuration: frozen and strict, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Chosen(Section):
    """The section of a callable, with its options as keys."""

    call: ClassVar[Callable[..., Any]]

    def options(self) -> dict[str, Any]:
        """The arguments stated by the section."""
        return {key: getattr(self, key) for key in type(self).model_fields if key in arguments(self.call)}


def arguments(call: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The arguments of a callable by name."""
    return signature(call).parameters


def default(call: Callable[..., Any], key: str) -> Any:
    """Return the default of an option; for a layer, its name.

    >>> default(models.mlp, "widths"), default(models.mlp, "linear")
    ((1024, 1024, 1024), 'cholesky')
    """
    found = arguments(call)[key].default
    return next((name for name, part in PARTS.get(key, {}).items() if part is found), found)


def one_of(
    table: Table,
    *,
    tag: str = "name",
    base: Callable[[Callable[..., Any]], type[Chosen]] = lambda call: Chosen,
    hidden: frozenset[str] = frozenset(),
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Return the type of a key that takes one of a table's callables: a union of sections, distinguished by `tag`.

    A section's keys are those of the callable's `base`, the options that are neither in `base` nor `hidden`, and
    `more`.
    """
    sections = [
        _section(name, call, tag, base(call), hidden, (more or {}).get(name, {})) for name, call in table.items()
    ]
    return Annotated[Union[tuple(sections)], Field(discriminator=tag)]  # noqa: UP007 (made of a tuple)


def value_of(table: Table, *, hidden: frozenset[str] = frozenset()) -> Any:
    """Return the type of a key whose value is the callable's result, such as a frozen dataclass, with its options.

    >>> loss = value_of(LOSSES, hidden=frozenset({"lipschitz", "p"}))
    >>> chosen(loss, name="hinge", eps=0.5)
    Hinge(eps=0.5, lipschitz=1.0, p=2)
    >>> TypeAdapter(loss).dump_python(losses.Hinge(eps=0.5))
    {'name': 'hinge', 'eps': 0.5}
    """
    union = one_of(table, hidden=hidden)
    sections: Mapping[Any, type[Chosen]] = {section.call: section for section in get_args(get_args(union)[0])}
    names = {call: name for name, call in table.items()}

    def section_of(value: Any) -> Chosen:
        section = sections[type(value)]
        keys = [key for key in section.model_fields if key != "name"]
        return section(name=names[type(value)], **{key: getattr(value, key) for key in keys})

    def made(value: Any, validate: Callable[[Any], Chosen]) -> Any:
        section = section_of(value) if type(value) in sections else validate(value)
        found = section.call(**section.options())
        if type(value) in sections and found != value:
            raise ValueError(
                f"a configuration states {found!r}, not {value!r}; leave the others out, or train in Python"
            )
        return found

    def stated(value: Any, info: SerializationInfo) -> dict[str, Any]:
        return section_of(value).model_dump(mode=info.mode)

    return Annotated[union, WrapValidator(made), PlainSerializer(stated)]


def chosen(kind: Any, **values: Any) -> Any:
    """Return the section or value of such a type that a file with these keys would state."""
    return TypeAdapter(kind).validate_python(values)


def _section(
    name: str,
    call: Callable[..., Any],
    tag: str,
    base: type[Chosen],
    hidden: frozenset[str],
    more: Mapping[str, Any],
) -> type[Chosen]:
    annotated = get_type_hints(call, include_extras=True)
    fields: dict[str, Any] = {tag: (Literal[name], ...)}
    for key, one in arguments(call).items():
        if key not in hidden and key not in base.model_fields:
            fields[key] = (_in_yaml(annotated[key]), ... if one.default is Parameter.empty else one.default)
    section = create_model(name, __base__=base, __doc__=call.__doc__, **fields, **more)
    section.call = staticmethod(call)
    return section


def _in_yaml(annotation: Any) -> Any:
    """The type of an option in a file: a list for a sequence, and no callables."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Sequence:
        return Annotated[tuple[inner[0], ...], Strict(False), Field(min_length=1)]
    if origin in (Union, UnionType):
        kept = tuple(_in_yaml(one) for one in inner if get_origin(one) is not Callable)
        return Union[kept]  # noqa: UP007
    return annotation
