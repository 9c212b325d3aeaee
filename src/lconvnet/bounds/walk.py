"""From a baked network to the graph of its operations, refusing what has no rule.

``torch.fx`` records the forward pass, entering modules that have no rule of their own; :mod:`lconvnet.bounds.reading`
turns each recorded call into nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn

from lconvnet.bounds.attributes import plain_attributes, version
from lconvnet.bounds.graph import Graph
from lconvnet.bounds.reading import Reader, Trace, local
from lconvnet.bounds.rules import RULES
from lconvnet.bounds.types import Operation
from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.altered import altered, refuse_foreign, require_module, require_numbers
from lconvnet.ops.float64 import refuse_flushing
from lconvnet.ops.images import checked_shape


def trace(network: nn.Module, input_shape: Sequence[int] | None = None) -> Trace:
    """Read the graph of a network.

    Args:
        network: a module with a rule, or one whose forward pass calls such modules and the functions of
            :data:`lconvnet.bounds.functions.HANDLERS`, nested as you like.
        input_shape: shape of one input without the batch, such as ``(C, H, W)``; a graph with function calls needs it.

    Raises:
        ValueError: names a module or call that has no rule or is unsound as configured, or a shape that does not fit.

    >>> network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> [(node.name, node.operation) for node in trace(network).graph.nodes]
    [('input', 'input'), ('0', 'Flatten'), ('1.0', 'Linear'), ('1.1', 'ReLU')]
    """
    shape = None if input_shape is None else checked_shape(input_shape)
    require_module(network)
    require_numbers(network)
    refuse_foreign(network)
    refuse_flushing()
    for name, module in network.named_modules():
        _refuse_altered(module, name)
    before = _state(network)
    recorded, entered = _recorded(network)
    for name in entered:
        _refuse_training(network.get_submodule(name), name)
    traced = Reader(network, shape).read(recorded)
    if _state(network) != before or str(_recorded(network)[0]) != str(recorded):
        raise ValueError(
            f"network ({type(network).__name__}) changes its own tensors or attributes when it is called, so two calls "
            "need not be the same function: make it one"
        )
    return traced


def operations(network: nn.Module, input_shape: tuple[int, ...] | None = None) -> list[Operation]:
    """The modules of a network's graph in order; a ``CircularPad2d`` belongs to the convolution behind it.

    >>> network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    >>> [step.name for step in operations(network)]
    ['0', '1.0', '1.1']
    """
    return list(trace(network, input_shape).operations.values())


def in_float64(network: nn.Module, graph: Graph) -> nn.Module:
    """A copy in float64 and eval mode whose graph is the same.

    Raises ``ValueError`` where its numbers are others, as those of a forward pass that computes them from a buffer.
    """
    with torch.inference_mode(False):  # a copy made in inference mode could not be differentiated
        copy = deepcopy(network).double().eval()
    if trace(copy, graph.nodes[0].shape).graph != graph:
        raise ValueError(
            f"network ({type(network).__name__}) computes other numbers in float64 than in its own dtype: compute them "
            "once, and keep each as a float or a buffer"
        )
    return copy


class _Holder(nn.Module):
    """Makes the network itself a module that the recorder meets."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _recorded(network: nn.Module) -> tuple[fx.Graph, set[str]]:
    """The calls of a forward pass, and the modules that were entered for them."""
    recorder = _Recorder()
    try:
        return recorder.trace(_Holder(network)), recorder.entered
    except Exception as error:  # whatever a foreign forward pass raises when its input has no values
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"network ({type(network).__name__}) cannot be traced by torch.fx: {reason}; its forward pass must not "
            "depend on values, or give it a rule: lconvnet.bounds.register_rule"
        ) from error


def _state(network: nn.Module) -> list[Any]:
    """What a forward pass must leave as it is."""
    tensors = [(name, id(tensor), version(tensor)) for name, tensor in network.named_buffers()]
    tensors += [(name, id(tensor), version(tensor)) for name, tensor in network.named_parameters()]
    return [*tensors, *((name, plain_attributes(module)) for name, module in network.named_modules())]


class _Value(fx.Proxy):
    """A tensor that is being recorded; ``x += y`` would be recorded as ``x = x + y``, which other names do not see."""

    def _refuse(self, other: Any) -> Any:
        raise TypeError("a tensor is changed in place, as by x += y: write x = x + y")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = _refuse
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _refuse


class _Recorder(fx.Tracer):
    """Enters sequences and modules of users that have no rule, and notes in which module each call happens."""

    def __init__(self) -> None:
        super().__init__()
        self.callers, self.learns = [""], _learns()
        self.entered: set[str] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        foreign = not type(m).__module__.startswith("torch.nn") and not isinstance(m, ConstrainedLayer)
        return type(m) in RULES or not (foreign or type(m) is nn.Sequential)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = local(self.path_of_module(m))
        self.callers.append(path)
        if not self.is_leaf_module(m, path):
            self.entered.add(path)
        result = super().call_module(m, forward, args, kwargs)
        self.callers.pop()
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _learns() != self.learns:
            raise TypeError("it switches gradients on or off, which no recording shows: do that outside")
        node = super().create_node(*args, **kwargs)
        node.meta["caller"] = self.callers[-1]
        return node


def _learns() -> tuple[bool, bool]:
    """The mode that gradients are in."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _refuse_altered(module: nn.Module, name: str) -> None:
    """A hook or a replaced method makes a module compute something that its type does not tell."""
    if method := altered(module):
        raise Operation(name, module).refuse(
            f"has a forward hook or a replaced {method}, so its type says nothing: remove it, or bake the model"
        )


def _refuse_training(module: nn.Module, name: str) -> None:
    """A forward pass that was read must be the one that is deployed."""
    if module.training and type(module) is not nn.Sequential:
        raise Operation(name, module).refuse(
            "is in training mode, in which its forward pass may differ: call network.eval() first"
        )
