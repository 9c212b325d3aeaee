"""Turn the recorded calls of a forward pass into nodes of a graph. Each is checked and, if the size is known, run.

A call is read as one of the modules or functions of :mod:`lconvnet.bounds.operations`. It runs on two random images, so
shapes are torch's own, and the last result must equal the network's output for these images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from lconvnet.bounds.attributes import fault, plain_attributes, tensors_of, version
from lconvnet.bounds.operations import (
    ARITHMETIC,
    CALLS,
    MODULES,
    READ_ONLY,
    REGISTERED,
    SIZES,
    Operation,
    operation_of,
)
from lconvnet.bounds.torch_functions import Constant, FunctionCall
from lconvnet.bounds.types import INPUT, AppliedFunction, Graph, ModuleCall, Node, Trace
from lconvnet.layers import ConstrainedLayer

Refuse = Callable[[str], ValueError]
"""Maps a problem to the error that also names the call."""

EXAMPLES = 2
"""Images on which a call runs: more than one, so that mixing them shows."""

BLOCK = 2**18
"""Number of entries compared at once."""

SAME = 2.0**-7
"""Largest difference, relative to the largest entry, between results of the same calls: for bfloat16 in another order,
and for float32 on an accelerator, which may round to TensorFloat-32 in a batch but not alone. For more precise numbers
it is the root of their round-off."""


def local(path: str) -> str:
    """Convert a path inside the holder to one inside the network."""
    return path.removeprefix("network").removeprefix(".")


def _join(caller: str, name: str) -> str:
    return f"{caller}/{name}" if caller else name


def _replaced(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    return fx.map_arg(argument, lambda node: values[node])


class GraphBuilder:
    """Reads the recorded calls in order. ``values`` holds the meaning of each call, ``examples`` its results."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...] | None) -> None:
        self.network, self.shape = network, shape
        self.tensors = tensors_of(network)
        floats = (tensor for tensor in self.tensors.values() if tensor.is_floating_point())
        self.like = next(floats, torch.zeros(()))
        self.nodes: dict[str, Node] = {}
        self.calls: dict[str, ModuleCall] = {}
        self.constants: dict[str, Tensor] = {}
        self.values: dict[fx.Node, Any] = {}
        self.examples: dict[fx.Node, Any] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(self, recorded: fx.Graph) -> Trace:
        for call in recorded.nodes:
            if call.op == "placeholder":
                self.values[call] = self.nodes[INPUT] = Node(INPUT, INPUT, shape=self.shape)
                self.examples[call] = self._images()
            elif call.op == "output":
                traced = self._trace(_replaced(call.args[0], self.values))
                self._compare(_replaced(call.args[0], self.examples))
                return traced
            else:
                readers = {"call_module": self._read_module, "get_attr": self._read_constant}
                readers.get(call.op, self._read_function)(call)
                self._forget(call)
        raise ValueError("network returns nothing")

    def _forget(self, call: fx.Node) -> None:
        """Drop results that no later call reads, so that a deep network takes no more memory than its widest part."""
        for source in call.all_input_nodes:
            if all(user is call or user in self.values for user in source.users):
                self.examples.pop(source, None)

    def _read_module(self, call: fx.Node) -> None:
        path = local(str(call.target))
        module = self.network.get_submodule(path)
        source = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        value = self.values.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(source, fx.Node) or not isinstance(value, Node | _Padded):
            raise ModuleCall(path, module).refuse("takes something else than one tensor: no rule is known")
        example = self.examples[source]
        if isinstance(value, _Padded):
            if type(module) is not nn.Conv2d or len(source.users) != 1:
                raise value.refuse()
            found, value = ModuleCall(path, module, value.padding, value.source.shape), value.source
        else:
            found = ModuleCall(path, module, input_shape=value.shape)
        if type(module) is nn.CircularPad2d:
            self.values[call], self.examples[call] = _Padded(found, value), example
        else:
            self._append(call, found, value, example)

    def _append(self, recorded: fx.Node, call: ModuleCall, source: Node, example: Any) -> None:
        """Check a module, run it, and append its node."""
        operation = _checked(call)
        result = None if example is None else _run(call, example)
        held = plain_attributes(call.module)
        if call.padding is not None:
            held["circular_padding"] = list(call.padding.padding)
        name = self._unique(call.name)
        shape = None if result is None else tuple(result.shape[1:])
        tensors = {role: f"{call.name}.{role}".removeprefix(".") for role in tensors_of(call.module)}
        self.nodes[name] = Node(name, operation.name, (source.name,), recorded.meta["caller"], held, tensors, shape)
        self.calls[name] = replace(call, name=name)
        self.values[recorded], self.examples[recorded] = self.nodes[name], result

    def _read_constant(self, call: fx.Node) -> None:
        target = str(call.target)
        key = local(target)
        if key not in self.tensors or not target.startswith("network."):
            raise ValueError(
                f"network module {call.meta['caller']!r} computes with a tensor that is neither parameter nor buffer, "
                "or works one out anew in each call: work it out once, in __init__, and register_buffer it"
            )
        self.values[call], self.examples[call] = Constant(key, self.tensors[key]), self.tensors[key]
        self.constants[key] = self.tensors[key]

    def _read_function(self, call: fx.Node) -> None:
        args, kwargs = _replaced(call.args, self.values), _replaced(call.kwargs, self.values)
        name, caller = str(getattr(call.target, "__name__", call.target)), call.meta["caller"]
        refuse = partial(_refuse_call, name, caller, self.network.get_submodule(caller))
        if call.target in ARITHMETIC and all(isinstance(value, int | float) for value in args):
            try:
                self.values[call] = self.examples[call] = call.target(*args)  # pyright: ignore[reportCallIssue]
            except (ArithmeticError, ValueError, TypeError) as error:
                raise refuse(f"cannot take the numbers {tuple(args)}: {_first_line(error)}") from error
            return
        _check_operands(call, [self.values[node] for node in call.all_input_nodes], refuse)
        reader, as_module = _reader(call.target)
        if reader is None:
            raise refuse(
                "has no Lipschitz rule, and none is assumed: call a module instead, or give it one by "
                "lconvnet.register_operation"
            )
        if self.shape is None:
            raise refuse("needs the size of its input: pass input_shape")
        if as_module:
            self._read_as_module(call, reader, _join(caller, name), args, kwargs, refuse)
            return
        result = self.examples[call] = self._result(call, refuse)
        with _known_forms(reader, refuse):
            self.values[call] = reader(FunctionCall(result, refuse, partial(self._record, caller)), *args, **kwargs)

    def _read_as_module(
        self, call: fx.Node, make: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], refuse: Refuse
    ) -> None:
        """Read a function as the module with the same arguments."""
        source, options = call.args[0] if call.args else call.kwargs.get("input"), {**kwargs}
        value = args[0] if args else options.pop("input", None)
        if not isinstance(value, Node):
            raise refuse("takes something else than one tensor: no rule is known")
        with _known_forms(make, refuse):
            module = make(*args[1:], **options)
        if type(module) is AppliedFunction and not {"arguments", "keywords"} <= plain_attributes(module).keys():
            raise refuse("takes something else than one tensor and plain numbers: make it a module")
        self._append(call, ModuleCall(name, module, None, value.shape), value, _replaced(source, self.examples))

    def _record(
        self,
        caller: str,
        operation: str,
        inputs: Sequence[Node],
        options: Mapping[str, Any],
        tensors: Mapping[str, str],
        shape: tuple[int, ...],
    ) -> Node:
        name, names = self._unique(_join(caller, operation)), tuple(node.name for node in inputs)
        if 0 in shape:
            empty = f"returns a tensor of shape {shape} with no entries: leave it out"
            raise _refuse_call(operation, caller, self.network.get_submodule(caller), empty)
        self.nodes[name] = Node(name, operation, names, caller, options, tensors, shape)
        return self.nodes[name]

    def _result(self, call: fx.Node, refuse: Refuse) -> Any:
        """The result of a function; if it fails, its own message."""
        args, kwargs = _replaced(call.args, self.examples), _replaced(call.kwargs, self.examples)
        try:
            if isinstance(call.target, str):
                return getattr(args[0], call.target)(*args[1:], **kwargs)
            return call.target(*args, **kwargs)
        except Exception as error:  # a function may raise anything
            raise refuse(f"cannot take these arguments: {_first_line(error)}") from error

    def _images(self) -> Tensor | None:
        if self.shape is None:
            return None
        try:
            images = torch.rand(EXAMPLES, *self.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        except RuntimeError:
            raise ValueError(f"input_shape={self.shape}: {EXAMPLES} such images do not fit into memory") from None
        return images.to(self.like.device, self.like.dtype)

    def _compare(self, result: Tensor | None) -> None:
        """Raise if the network computes something that was not recorded."""
        images = self._images()
        if result is None or images is None:
            return
        if not _close(self.network(images), [result]):
            raise ValueError(
                f"network ({type(self.network).__name__}) computes something else than the calls that torch.fx "
                "records, as by a change in place or a state: make it one function"
            )

    def _unique(self, name: str) -> str:
        name, count = name or "network", 1
        while (found := name if count == 1 else f"{name}#{count}") in self.nodes:
            count += 1
        return found

    def _trace(self, output: Any) -> Trace:
        if isinstance(output, _Padded):
            raise output.refuse()
        if not isinstance(output, Node):
            raise ValueError("network returns something else than one tensor that depends on its input: return one")
        everything = Graph(tuple(self.nodes.values()), output.name)
        chain = everything.is_chain and everything.nodes[-1].name == output.name
        for node in everything.nodes:
            if node.options.get("inplace") and not chain:
                raise ValueError(
                    f"network module {node.name!r} ({node.operation}) works in place where its input may be read "
                    "again: use inplace=False"
                )
        needed = {output.name, INPUT}
        for node in reversed(everything.nodes):
            needed |= set(node.inputs) if node.name in needed else set()
        graph = Graph(tuple(node for node in everything.nodes if node.name in needed), output.name)
        calls = {name: call for name, call in self.calls.items() if name in needed}
        return Trace(graph, calls, self.constants)


@dataclass(frozen=True)
class _Padded:
    """A circular padding that waits for its convolution."""

    call: ModuleCall
    source: Node

    @property
    def padding(self) -> nn.CircularPad2d:
        if min(self.call.module.padding) < 0:  # pyright: ignore[reportArgumentType]
            raise self.call.refuse(
                f"has padding={self.call.module.padding}: a negative circular padding is not bounded; crop instead"
            )
        return self.call.module  # pyright: ignore[reportReturnType]

    def refuse(self) -> ValueError:
        """The error for a padding without a convolution."""
        return self.call.refuse(
            "repeats pixels: it is sound only directly before an nn.Conv2d(padding=0) that covers it"
        )


def _reader(target: Any) -> tuple[Callable[..., Any] | None, bool]:
    """The reader of a function call, if there is one, and whether it makes a module from the arguments."""
    if target in REGISTERED:
        return partial(AppliedFunction, REGISTERED[target].kind), True
    if target in CALLS:
        return CALLS[target].calls[target], CALLS[target].kind in MODULES
    return READ_ONLY.get(target), False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_operands(call: fx.Node, operands: Sequence[Any], refuse: Refuse) -> None:
    """Refuse a padding without its convolution, and results that do not depend on the input of the network."""
    for value in operands:
        if isinstance(value, _Padded):
            raise value.refuse()
    if any(map(_depends, operands)) or call.target in SIZES:
        return
    held = [value for value in operands if isinstance(value, Constant)]
    if held:
        raise refuse(
            f"computes with {held[0]!r} alone, whatever the input is: do that once, in __init__, and register_buffer "
            "the result"
        )
    raise refuse("computes with the number of examples, which differs from batch to batch: write a number")


def _depends(value: Any) -> bool:
    """Whether a value is a tensor that depends on the input, or holds one."""
    return isinstance(value, Node) or (isinstance(value, tuple) and any(map(_depends, value)))


@contextmanager
def _known_forms(rule: Any, refuse: Refuse) -> Iterator[None]:
    """If a reader raises for unknown arguments, raise an error that names the arguments it knows."""
    try:
        yield
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        names = [name for name in signature(rule).parameters if name not in ("self", "call")]
        raise refuse(f"is called in a form that no rule knows: known is only ({', '.join(names)})") from error


def _refuse_call(function: str, caller: str, module: nn.Module, problem: str) -> ValueError:
    return ValueError(
        f"function {function!r}, called by network module {caller!r} ({type(module).__name__}), {problem}"
    )


def _checked(call: ModuleCall) -> Operation:
    """The record of a module. Refuses a module without one, unsound as configured, or with an input of a wrong rank."""
    operation, shape = operation_of(call.module), call.input_shape
    if isinstance(call.module, ConstrainedLayer):
        raise call.refuse("still owns its kernel: bound the baked network, lconvnet.bake(model)")
    if operation is None:
        known = sorted(getattr(kind, "__name__", kind) for kind in (*MODULES, *REGISTERED))
        raise call.refuse(
            f"has no Lipschitz rule, and none is assumed: build the network from {', '.join(known)}, or give it a rule "
            "by lconvnet.register_operation"
        )
    if shape is not None and len(shape) != 3 and operation.images:
        raise call.refuse(f"needs images of shape (channels, height, width), but meets inputs of shape {shape}")
    loose = [name for name, value in vars(call.module).items() if isinstance(value, Tensor)]
    if loose:
        raise call.refuse(f"has a {loose[0]} that is neither parameter nor buffer: make it an nn.Parameter")
    for part in () if operation.registered else call.parts:
        if problem := fault(part):
            raise ModuleCall(call.name, part).refuse(f"{problem}: build a new one")
    if operation.check is not None:
        operation.check(call)
    return operation


def _close(whole: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether the parts of a batch, put together, equal the whole up to rounding."""
    if {part.shape[1:] for part in parts} != {whole.shape[1:]} or sum(map(len, parts)) != len(whole):
        return False
    sizes = (float(block.abs().nan_to_num(nan=0.0, posinf=0.0).max()) for block in _blocks([whole]))
    near = partial(torch.allclose, rtol=0.0, atol=max(sizes) * _apart(whole), equal_nan=True)
    return all(map(near, _blocks(whole.split(list(map(len, parts)))), _blocks(parts)))


def _blocks(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The entries of tensors, a few at a time, so that a comparison takes little memory."""
    return chain.from_iterable(tensor.reshape(-1).split(BLOCK) for tensor in tensors)


def _apart(values: Tensor) -> float:
    """The tolerance between results of the same calls, relative to the largest entry."""
    if not values.is_floating_point():
        return 0.0
    if values.dtype == torch.float32 and values.device.type != "cpu":
        return SAME
    return min(SAME, torch.finfo(values.dtype).eps ** 0.5)


def _run(call: ModuleCall, example: Tensor) -> Tensor:
    """The output of a module. Refuses one that mixes examples, changes its input, or does not return one tensor."""
    before, operation = version(example), operation_of(call.module)
    registered = operation is not None and operation.registered  # of a built-in one two examples tell enough
    try:
        alone = [call.parts(one.clone()) for one in example.split(1)]
        three = call.parts(torch.cat([example, example[:1]])) if registered else None
        result = call.parts(example)
    except Exception as error:  # a module may raise anything
        shape = tuple(example.shape[1:])
        raise call.refuse(f"cannot take an input of shape {shape}: {_first_line(error)}") from error
    if not isinstance(result, Tensor) or result.ndim < 1 or len(result) != len(example):
        raise call.refuse("returns something else than one tensor for each example: no rule is known")
    if 0 in result.shape:
        raise call.refuse(f"returns a tensor of shape {tuple(result.shape[1:])} with no entries: leave it out")
    if not _close(result, alone) or (three is not None and not _close(three, [*alone, alone[0]])):
        raise call.refuse("mixes the examples of a batch: no rule is known")
    if version(example) != before and not getattr(call.module, "inplace", False):
        raise call.refuse("changes its input in place, which others may read: let it return a new tensor")
    return result
