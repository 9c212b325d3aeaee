"""From a baked network to the graph of its operations. Operations without a rule are refused.

``torch.fx`` records the forward pass and enters modules that have no rule. :mod:`lconvnet.bounds.graph_builder` turns
each recorded call into nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn

from lconvnet.bounds.attributes import plain_attributes, tensors_of, version
from lconvnet.bounds.graph_builder import GraphBuilder, local
from lconvnet.bounds.operations import operation_of
from lconvnet.bounds.types import Graph, ModuleCall, Trace
from lconvnet.layers import ConstrainedLayer
from lconvnet.ops.float64 import refuse_flushing
from lconvnet.ops.hooks import altered, refuse_foreign, require_module, require_numbers
from lconvnet.ops.images import checked_shape


def trace(network: nn.Module, input_shape: Sequence[int] | None = None) -> Trace:
    """Read the graph of a network.

    Args:
        network: a module with a rule, or one whose forward pass calls such modules and the functions of
            :mod:`lconvnet.bounds.operations`, nested to any depth.
        input_shape: shape of one input without the batch, such as ``(C, H, W)``; required if there are function calls.

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
    traced = GraphBuilder(network, shape).read(recorded)
    if _state(network) != before or str(_recorded(network)[0]) != str(recorded):
        raise ValueError(
            f"network ({type(network).__name__}) changes its own tensors or attributes when it is called, so two calls "
            "need not be the same function: make it one"
        )
    return traced


def in_float64(network: nn.Module, graph: Graph) -> nn.Module:
    """A copy in float64 and eval mode with the same graph.

    Raises ``ValueError`` if a number in the graph differs, for example if the forward pass computes it from a buffer.
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
    """Holds the network, so that the recorder meets it as a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _recorded(network: nn.Module) -> tuple[fx.Graph, set[str]]:
    """The calls of a forward pass, and the modules that were entered."""
    recorder = _Recorder()
    try:
        return recorder.trace(_Holder(network)), recorder.entered
    except Exception as error:  # a foreign forward pass may raise anything if its input has no values
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"network ({type(network).__name__}) cannot be traced by torch.fx: {reason}; its forward pass must not "
            "depend on values, or give it a rule: lconvnet.register_operation"
        ) from error


def _state(network: nn.Module) -> list[Any]:
    """The state that a forward pass must not change."""
    tensors = [(name, id(tensor), version(tensor)) for name, tensor in tensors_of(network).items()]
    return [*tensors, *((name, plain_attributes(module)) for name, module in network.named_modules())]


class _Value(fx.Proxy):
    """A tensor that is being recorded. It refuses ``x += y``: other names would not see a recorded ``x = x + y``."""

    def _refuse(self, other: Any) -> Any:
        raise TypeError("a tensor is changed in place, as by x += y: write x = x + y")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = _refuse
    __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _refuse


class _Recorder(fx.Tracer):
    """Enters sequences and user modules without a rule, and notes the module in which each call happens."""

    def __init__(self) -> None:
        super().__init__()
        self.callers, self.learns = [""], _learns()
        self.entered: set[str] = set()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        foreign = not type(m).__module__.startswith("torch.nn") and not isinstance(m, ConstrainedLayer)
        return operation_of(m) is not None or not (foreign or type(m) is nn.Sequential)

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
    """The current gradient mode."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _refuse_altered(module: nn.Module, name: str) -> None:
    """Refuse a hook or a replaced method, because the module's type does not describe it."""
    if method := altered(module):
        raise ModuleCall(name, module).refuse(
            f"has a forward hook or a replaced {method}, so its type says nothing: remove it, or bake the model"
        )


def _refuse_training(module: nn.Module, name: str) -> None:
    """Refuse training mode: the traced forward pass must be the deployed one."""
    if module.training and type(module) is not nn.Sequential:
        raise ModuleCall(name, module).refuse(
            "is in training mode, in which its forward pass may differ: call network.eval() first"
        )
