"""Base of the layers that own a kernel, and what they share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from itertools import chain
from math import isfinite, sqrt
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, fx, nn

from lconvnet.kernels import Kernel
from lconvnet.ops.derivatives import plain_call
from lconvnet.ops.orthogonalize import default_engine


class ConstrainedLayer(nn.Module, ABC):
    """Base of the layers whose weight comes from a kernel.

    The kernel is evaluated at every call, in training and in eval mode. Nothing is cached between calls, so a weight is
    never out of date, and every transform of a call sees the parameters. :func:`lconvnet.bake` evaluates the kernel
    once: use its result for inference.

    Raises:
        ValueError: at a call, if the kernel does not return a floating-point tensor of :attr:`weight_shape`; on a CPU
            also if that tensor is not finite. Transforms, compiled code and accelerators (where a check would wait for
            the host) do not check and return NaN.
    """

    def __init__(self, kernel: Kernel, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.bias: nn.Parameter | None = None
        if bias:
            like = _first(kernel)
            like = kernel() if like is None else like
            empty = torch.empty(outputs, device=like.device, dtype=like.dtype)
            self.bias = nn.Parameter(empty, requires_grad=not kernel.frozen)
        self._bias_bound = 1 / sqrt(inputs if kernel.bias_fan == "inputs" else outputs)
        self._reset_bias()

    def reset_parameters(self) -> None:
        """Draw the kernel's parameters and the bias again."""
        self.kernel.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            nn.init.uniform_(self.bias, -self._bias_bound, self._bias_bound)

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """The shape that the kernel's weight must have."""

    @property
    def weight(self) -> Tensor:
        """A copy of the constrained weight, a differentiable function of the current parameters."""
        return self.current_weight().clone()

    def current_weight(self) -> Tensor:
        """The kernel's weight for the current parameters, in their dtype; it may be a parameter itself (SVCM)."""
        with self.naming_what_is_not_finite():
            weight, like = self.checked(self.kernel()), _first(self)
        return weight if like is None else weight.to(like.dtype)

    def exact_weight(self) -> Tensor:
        """The weight evaluated in float64 and then rounded once to the dtype of the parameters.

        Raises:
            ValueError: if the kernel is random and not a function of its parameters alone.
        """
        self.require_finite()
        with torch.no_grad():
            kernel = _settled(self.kernel)
            kernel = kernel.double()
            weight = self.checked(kernel())
            if not torch.equal(weight, self.checked(kernel())):
                raise ValueError(
                    f"kernel {type(self.kernel).__name__} returned two weights in two calls for the same parameters: a "
                    "weight is a function of these alone"
                )
            like = _first(self)
            return weight.to(self.current_weight() if like is None else like)

    def checked(self, weight: Tensor) -> Tensor:
        """Return the tensor if it can be this layer's weight."""
        found = f"{weight.dtype} of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == self.weight_shape:
            if not _seen_not_finite(weight):
                return weight
            found = "NaN or infinity"
        raise ValueError(
            f"kernel {type(self.kernel).__name__} returned {found}: the weight of {type(self).__name__} "
            f"({self.extra_repr()}) is a finite floating-point tensor of shape {self.weight_shape}"
        )

    @contextmanager
    def naming_what_is_not_finite(self) -> Iterator[None]:
        """If the kernel fails and a tensor is not finite, raise an error that names this layer and that tensor."""
        try:
            yield
        except ValueError:
            self.require_finite()
            raise

    def require_finite(self) -> None:
        """Raise ``ValueError`` that names this layer and its first tensor known to hold NaN or infinity, if any."""
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            if _seen_not_finite(tensor):
                raise ValueError(
                    f"{type(self).__name__}({self.extra_repr()}): {name} holds NaN or infinity: load weights that are "
                    "finite"
                )

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, which calls this first."""
        raise ValueError(
            f"{type(self).__name__}({self.extra_repr()}) computes its weight from free parameters, which torch.jit "
            "cannot keep: lconvnet.bake(model) is plain layers"
        )

    @abstractmethod
    def bake(self) -> nn.Module:
        """The same map as plain PyTorch modules with fixed weights."""

    def fill(self, plain: nn.Conv2d | nn.Linear, weight: Tensor) -> None:
        """Give a plain layer a fixed copy of the weight and of the bias."""
        weight = weight.detach().clone(memory_format=torch.contiguous_format)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)


def built(kernel: Callable[..., Kernel], *sizes: int, **options: Any) -> Kernel:
    """Build the kernel of a layer. The constructor need not accept options that are None.

    Raises:
        ValueError: if the constructor cannot take the arguments, or builds something other than a kernel.
    """
    if isinstance(kernel, nn.Module):
        raise ValueError(f"kernel is a built {type(kernel).__name__}: pass its constructor, or a partial of it")
    given = {name: value for name, value in options.items() if value is not None}
    name = getattr(kernel, "__name__", repr(kernel))
    try:
        inspect.signature(kernel).bind(*sizes, **given)
    except TypeError as error:
        call = ", ".join([*map(str, sizes), *(f"{option}={value!r}" for option, value in given.items())])
        raise ValueError(f"kernel {name} cannot be built by {name}({call}): {error}; let it take them") from None
    module = kernel(*sizes, **given)
    if not isinstance(module, Kernel):
        raise ValueError(
            f"kernel {name} built a {type(module).__name__}, which says nothing of its norm: derive it from "
            "lconvnet.kernels.Kernel"
        )
    return module


def _first(module: nn.Module) -> Tensor | None:
    """The first floating-point parameter or buffer of a module, which tells its dtype and device."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def _seen_not_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN or infinity. It checks only on a CPU and in a plain call, where this costs nothing."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or not plain_call(tensor) or not tensor.numel():
        return False
    return tensor.is_floating_point() and not all(isfinite(end) for end in tensor.detach().aminmax())


def _settled(kernel: Kernel) -> Kernel:
    """A copy in eval mode on the CPU, with the engines that the original uses on its device and in its dtype."""
    kernel = deepcopy(kernel).eval()
    for part in kernel.modules():
        if isinstance(part, Kernel) and part.engine is None and (like := _first(part)) is not None:
            part.engine = default_engine(like)
    return kernel.cpu()


Layer = TypeVar("Layer", bound=ConstrainedLayer)


def one_call(forward: Callable[[Layer, Tensor], Tensor]) -> Callable[[Layer, Tensor], Tensor]:
    """Decorate a ``forward``: ``torch.fx`` records it as one call of its layer, as it does for ``torch.nn``, and
    ``torch.jit.trace`` refuses it."""

    @wraps(forward)
    def called(layer: Layer, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return _recorded(layer, x)  # pyright: ignore[reportReturnType]
        if torch.jit.is_tracing():
            layer.__prepare_scriptable__()
        return forward(layer, x)

    return called


def _recorded(layer: ConstrainedLayer, x: fx.Proxy) -> fx.Proxy:
    tracer: Any = x.tracer
    path = tracer.path_of_module(layer)
    if not path:
        raise ValueError(f"{type(layer).__name__} is one call for torch.fx: trace a network that holds it")
    return tracer.create_proxy("call_module", path, (x,), {})
