"""The architecture of a network as data, including classes of the user.

Building a network from this data imports nothing by name, and every size in it is bounded. An operation is saved as the
arguments of its constructor (:attr:`lconvnet.bounds.operations.Operation.save`), each read from the attribute of the
same name. An instance of an unregistered class of the user is saved as its attributes, tensors and modules.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dis import get_instructions
from inspect import getattr_static, isfunction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, Union, cast

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lconvnet import layers
from lconvnet.bounds.attributes import arguments
from lconvnet.bounds.operations import MODULES, REGISTERED, Pad, qualified, saved_arguments
from lconvnet.layers import ConstrainedLayer

Classes: TypeAlias = Mapping[str, type[nn.Module]]
"""Classes of the user by their qualified names. A file can name no others."""


class Entry(BaseModel):
    """One operation of a saved network; its fields are attributes and constructor arguments of `module`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    module: ClassVar[type[nn.Module]]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=64)]

    def build(self, classes: Classes) -> nn.Module:
        """Return the module, on the device of the surrounding context."""
        return self.module(**{field: getattr(self, field) for field in MODULES_SAVED[self.module]})

    @classmethod
    def of(cls, name: str, module: nn.Module, path: str, classes: Classes) -> Entry:
        """Return the entry of a module."""
        return cls(name=name, **arguments(module, MODULES_SAVED[cls.module]))


MODULES_SAVED: Mapping[type[nn.Module], Mapping[str, Any]] = {
    **{kind: record.save for kind, record in MODULES.items() if record.save is not None},
    nn.CircularPad2d: {"padding": tuple[Pad, Pad, Pad, Pad]},
}
"""Built-in modules with the types of their saved arguments, and the circular padding that precedes a convolution."""


MOST = 10_000
"""Largest number of layers in one sequence."""


def unique(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the entries; ValueError if two have the same name, because a sequence would keep only one."""
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("two layers share a name")
    return entries


if TYPE_CHECKING:  # defined below at run time, once the classes exist
    Layer: TypeAlias = Entry
    Layers: TypeAlias = tuple[Entry, ...]


class Container(Entry):
    """Modules by name: in order, or as a class of the user holds them."""

    op: Literal["sequence", "list", "dict"]
    layers: Layers

    def build(self, classes: Classes) -> nn.Module:
        """Return the modules."""
        named = OrderedDict((entry.name, entry.build(classes)) for entry in self.layers)
        return nn.ModuleList(named.values()) if self.op == "list" else CONTAINERS[self.op](named)

    @classmethod
    def of(cls, name: str, module: nn.Module, path: str, classes: Classes) -> Entry:
        """Return the entry of a container."""
        op = next(op for op, kind in CONTAINERS.items() if kind is type(module))
        return cls(name=name, op=cast(Any, op), layers=entries(module, path, classes))


CONTAINERS: Mapping[str, type[Any]] = {"sequence": nn.Sequential, "list": nn.ModuleList, "dict": nn.ModuleDict}


class Branches(Entry):
    """Branches on one input: each a sequence of operations, or one operation."""

    branches: Annotated[tuple[Layers | Layer, ...], Field(min_length=1, max_length=2**10)]

    def build(self, classes: Classes) -> nn.Module:
        """Return the module with its branches."""
        branches = (build(b, classes) if isinstance(b, tuple) else b.build(classes) for b in self.branches)
        return self.module(*branches)

    @classmethod
    def of(cls, name: str, module: nn.Module, path: str, classes: Classes) -> Entry:
        """Return the entry of a module with branches."""
        children = cast(nn.ModuleList, module.branches)._modules.items()
        paths = {i: f"{path}.branches.{i}" for i, _ in children}
        branches = (
            entries(cast(nn.Module, child), paths[i], classes)
            if type(child) is nn.Sequential
            else _entry(i, cast(nn.Module, child), paths[i], classes)
            for i, child in children
        )
        return cls(name=name, branches=tuple(branches))


class Stored(BaseModel):
    """A parameter or buffer whose values are among the tensors of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=2**30)], ...], Field(max_length=8)]
    dtype: Literal[
        "float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"
    ]  # fmt: skip

    def empty(self) -> Tensor:
        """Return such a tensor, on the device of the surrounding context."""
        return torch.empty(self.shape, dtype=getattr(torch, self.dtype))


def _own_attributes(held: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if common := held.keys() & vars(nn.Module()).keys():
        raise ValueError(f"{min(common)} is an attribute of every module")
    return held


def _hides(kind: type[nn.Module], name: str) -> bool:
    """Whether an attribute would hide a member of ``nn.Module``, or a method or property of the class, and no function
    of the class assigns it."""
    held = getattr_static(kind, name, None)
    taken = hasattr(nn.Module, name) or callable(held) or hasattr(type(held), "__get__")
    return taken and not any(name in _assigned(base) for base in kind.__mro__ if not issubclass(nn.Module, base))


def _assigned(kind: type) -> set[str]:
    """The attributes that functions of a class assign."""
    functions = [value for value in vars(kind).values() if isfunction(value)]
    return {step.argval for call in functions for step in get_instructions(call) if step.opname == "STORE_ATTR"}


class Own(Entry):
    """A module of a class of the user, restored like a copy: no constructor runs, and its attributes are set."""

    op: Literal["own"] = "own"
    kind: Annotated[str, Field(max_length=256)]
    attributes: Annotated[Mapping[str, JsonValue], AfterValidator(_own_attributes)]
    parameters: Mapping[str, Stored | None]
    buffers: Mapping[str, Stored | None]
    layers: Layers
    absent: tuple[str, ...] = ()  # names of modules that are None

    def build(self, classes: Classes) -> nn.Module:
        """Return the module; ValueError if its class was neither given nor registered, or if a name hides one of its
        methods."""
        registered = {record.name: kind for kind, record in REGISTERED.items() if isinstance(kind, type)}
        kind = classes.get(self.kind, registered.get(self.kind))
        if kind is None:
            raise ValueError(
                f"layer {self.name!r} is a {self.kind}, and a file never imports a class: pass it to load, "
                f"classes=[{self.kind.rpartition('.')[2]}]"
            )
        module = object.__new__(kind)
        nn.Module.__init__(module)
        if hiding := sorted(name for name in self.attributes if _hides(kind, name)):
            raise ValueError(f"layer {self.name!r} ({self.kind}) has an attribute {hiding[0]!r}, which hides a method")
        vars(module).update({name: _decoded(value) for name, value in self.attributes.items()})
        for name, kept in self.parameters.items():
            module.register_parameter(name, None if kept is None else nn.Parameter(kept.empty(), requires_grad=False))
        for name, kept in self.buffers.items():
            module.register_buffer(name, None if kept is None else kept.empty())
        for entry in self.layers:
            module.add_module(entry.name, entry.build(classes))
        for name in self.absent:
            module.add_module(name, None)
        return module

    @classmethod
    def of(cls, name: str, module: nn.Module, path: str, classes: Classes) -> Entry:
        """Return the entry of a module; ValueError for an attribute that is not plain data."""
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"layer {path!r} ({type(module).__name__}) has a state of its own (get_extra_state), which a file does "
                "not hold: keep it in attributes, parameters and buffers"
            )
        held = {key: value for key, value in vars(module).items() if key not in vars(nn.Module())}
        return cls(
            name=name,
            kind=qualified(type(module)),
            attributes={key: _coded(value, f"{path}.{key}") for key, value in held.items()},
            parameters=_stored(module._parameters),
            buffers=_stored(module._buffers),
            layers=entries(module, path, classes),
            absent=tuple(key for key, child in module._modules.items() if child is None),
        )


class Registered(Entry):
    """A module of a class that the user registered with the types of its constructor arguments."""

    op: Literal["registered"] = "registered"
    kind: Annotated[str, Field(max_length=256)]
    arguments: Mapping[str, JsonValue]

    def build(self, classes: Classes) -> nn.Module:
        """Return the module; ValueError if its class was not registered, or if arguments have other types."""
        found = (kind for kind, record in REGISTERED.items() if record.save is not None and record.name == self.kind)
        kind = next(found, None)
        if kind is None:
            raise ValueError(
                f"layer {self.name!r} is a {self.kind}, and a file never imports a class: before load, give it to "
                "lconvnet.register_operation with save=..."
            )
        try:
            read = saved_arguments(kind, REGISTERED[kind].save or {}).validate_json(json.dumps(self.arguments))
        except ValidationError as error:
            raise ValueError(f"layer {self.name!r} ({self.kind}) has other arguments: {problem(error)}") from None
        return kind(**read)

    @classmethod
    def of(cls, name: str, module: nn.Module, path: str, classes: Classes) -> Entry:
        """Return the entry of a module."""
        save = REGISTERED[type(module)].save
        if save is None:
            kind = type(module).__name__
            raise ValueError(
                f"layer {path!r} is a {kind}, which was registered without save: give lconvnet.register_operation the "
                f"types of its constructor arguments, save=..., or pass classes=[{kind}] to save and to load"
            )
        if lacking := [field for field in save if not hasattr(module, field)]:
            raise ValueError(
                f"layer {path!r} ({type(module).__name__}) has no attribute {lacking[0]!r}, by which the argument of "
                "its constructor is saved: set it in __init__"
            )
        types = saved_arguments(type(module), save)
        try:
            held = types.dump_python(types.validate_python(arguments(module, save)), mode="json")
        except ValidationError as error:
            raise ValueError(f"layer {path!r} ({type(module).__name__}) cannot be saved: {problem(error)}") from None
        return cls(name=name, kind=qualified(type(module)), arguments=held)


def _stored(tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
    return {
        name: tensor if tensor is None else {"shape": tuple(tensor.shape), "dtype": str(tensor.dtype).split(".")[1]}
        for name, tensor in tensors.items()
    }


def _coded(value: Any, path: str) -> JsonValue:
    """Plain data as JSON that distinguishes a tuple from a list."""
    if isinstance(value, tuple | list):
        items: list[JsonValue] = [_coded(item, path) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f"attribute {path!r} is a {type(value).__name__}, which a file does not hold: keep a number, a text, a list or "
        "tuple of those, a module, a parameter or a buffer"
    )


def _decoded(value: JsonValue) -> Any:
    if isinstance(value, dict):
        return tuple(_decoded(item) for item in cast(list[JsonValue], value["tuple"]))
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _made(module: type[nn.Module], label: str, fields: Mapping[str, Any], base: type[Entry] = Entry) -> type[Entry]:
    typed = {name: kind if type(kind) is tuple else (kind, ...) for name, kind in fields.items()}
    made = cast(Any, create_model)(module.__name__, __base__=base, op=(Literal[label], label), **typed)
    made.module = module
    return made


ENTRIES: Mapping[type[nn.Module], type[Entry]] = {
    **{
        kind: _made(kind, MODULES[kind].label if kind in MODULES else "circular-pad", save)
        for kind, save in MODULES_SAVED.items()
    },
    **dict.fromkeys(CONTAINERS.values(), Container),
    layers.Sum: _made(layers.Sum, "sum", {}, Branches),
    layers.Concat: _made(layers.Concat, "concat", {}, Branches),
}
"""The entry class of each module that a file can hold."""

if not TYPE_CHECKING:
    Layer = Annotated[Union[tuple(dict.fromkeys((*ENTRIES.values(), Own, Registered)))], Field(discriminator="op")]  # noqa: UP007
    Layers = Annotated[tuple[Layer, ...], Field(max_length=MOST), AfterValidator(unique)]
for model in (Container, ENTRIES[layers.Sum], ENTRIES[layers.Concat], Own):
    model.model_rebuild()


def build(operations: Iterable[Entry], classes: Classes) -> nn.Sequential:
    """Return the operations as a network."""
    return nn.Sequential(OrderedDict((entry.name, entry.build(classes)) for entry in operations))


def known_classes(classes: Iterable[type[nn.Module]]) -> Classes:
    """The given classes, by their names."""
    given = tuple(classes) if isinstance(classes, Iterable) else (classes,)
    for kind in given:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"classes={classes!r}: pass your classes of modules in a list, such as [Block]")
    return {qualified(kind): kind for kind in (nn.ParameterList, *given) if kind not in ENTRIES}


def architecture(network: nn.Module, classes: Iterable[type[nn.Module]] = ()) -> tuple[Entry, ...]:
    """Return the operations of a baked network in order; ValueError names a layer that cannot be saved.

    >>> [entry.op for entry in architecture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))]
    ['flatten', 'linear']
    """
    if type(network) is not nn.Sequential:
        wrap = "save takes the nn.Sequential that bake returns: wrap it, nn.Sequential(network)"
        raise ValueError(f"network is a {type(network).__name__}; {_unbaked(network) or wrap}")
    return entries(network, "", known_classes(classes))


def entries(module: nn.Module, path: str, classes: Classes) -> tuple[Entry, ...]:
    """Return the entries of a module's own modules, in order."""
    # Not named_children: it omits a module that is used a second time.
    return tuple(
        _entry(name, child, f"{path}.{name}" if path else name, classes)
        for name, child in module._modules.items()
        if child is not None
    )


def _entry(name: str, module: nn.Module, path: str, classes: Classes) -> Entry:
    own = classes.get(qualified(type(module))) is type(module)
    kind = Own if own else Registered if type(module) in REGISTERED else ENTRIES.get(type(module))
    if kind is None:
        raise ValueError(f"layer {path!r} is a {type(module).__name__}; {_way(module)}")
    try:
        return kind.of(name, module, path, classes)
    except ValidationError as error:
        why = problem(error)
        if why.startswith("name: "):
            why = "name: rename it, with at most 64 letters (a to z), digits and _"
        raise ValueError(f"layer {path!r} ({type(module).__name__}) cannot be saved: {why}") from None


def problem(error: ValidationError) -> str:
    """The first error and its place, in one line."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _way(module: nn.Module) -> str:
    """Advice for a module that is not one of the operations."""
    kind = type(module)
    if kind.__module__.startswith("torch."):
        known = ", ".join(sorted(known.__name__ for known in ENTRIES))
        return _unbaked(module) or f"build the network from {known}"
    return _unbaked(module) or (
        f"its forward pass is its own, which no file holds: pass classes=[{kind.__name__}] to save and to load, or "
        "build it from lconvnet.layers"
    )


def _unbaked(module: nn.Module) -> str:
    """The advice to bake, if baking would replace the module; else an empty string."""
    if isinstance(module, ConstrainedLayer):
        return "save takes baked networks only, use bake(model)"
    if type(module).__name__ == "OptimizedModule":
        return "save the module that was compiled"
    return "use bake(model), which takes the averaged network out" if type(module) is AveragedModel else ""
