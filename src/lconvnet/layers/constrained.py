"""A layer owns a kernel and remembers its weight while nothing can have changed it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from itertools import chain
from math import sqrt
from typing import Any, Self

import torch
from torch import Tensor, nn

from lconvnet.kernels import Kernel


class ConstrainedLayer(nn.Module, ABC):
    """Base of the layers whose weight comes from a kernel.

    The weight is evaluated anew in training. Where no gradient can be asked for (eval mode under ``no_grad``, or a
    kernel without trainable parameters) it is remembered, and dropped as soon as the version counter, the storage, the
    dtype or the device of a parameter or buffer of the kernel changes, so evaluation does not lag training. Writing
    through ``parameter.data`` and replaying a CUDA graph leave no trace that could be seen, but ``train()`` and
    ``eval()`` drop the weight, too, where they change the mode: call them around such steps. A compiled model evaluates
    at every call, since a graph cannot ask whether a parameter has changed: bake it for inference.
    """

    def __init__(self, kernel: Kernel, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.bias: nn.Parameter | None = None
        if bias:
            like = next(kernel.parameters())
            empty = torch.empty(outputs, device=like.device, dtype=like.dtype)
            self.bias = nn.Parameter(empty, requires_grad=not kernel.frozen)
        self._bias_bound = 1 / sqrt(inputs if kernel.bias_fan == "inputs" else outputs)
        self._reset_bias()
        self._remembered: tuple[Any, Tensor] | None = None

    def reset_parameters(self) -> None:
        """Draw the kernel's parameters and the bias anew."""
        self.kernel.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            nn.init.uniform_(self.bias, -self._bias_bound, self._bias_bound)

    @property
    def weight_may_learn(self) -> bool:
        """Whether the weight must be evaluated anew: a gradient can be asked for, or the kernel keeps statistics."""
        if torch.compiler.is_compiling():
            return True
        trainable = any(p.requires_grad for p in self.kernel.parameters())
        return trainable and (self.training or torch.is_grad_enabled())

    @property
    def weight(self) -> Tensor:
        """The constrained weight, a function of the current parameters."""
        if self.weight_may_learn:
            return self.kernel()
        state = _state(self.kernel)
        if self._remembered is None or self._remembered[0] != state:
            # a tensor made in inference mode could serve no gradient later
            with torch.inference_mode(False), torch.no_grad():
                self._remembered = state, self.kernel()
        return self._remembered[1]

    def train(self, mode: bool = True) -> Self:
        """Change the mode, and forget the weight where that is another one."""
        if mode != self.training:
            self._remembered = None
        return super().train(mode)

    def exact_weight(self) -> Tensor:
        """The weight evaluated in float64 and then rounded once to the dtype of the parameters."""
        like = next(self.kernel.parameters())
        with torch.no_grad():
            return deepcopy(self.kernel).cpu().eval().double()().to(like.device, like.dtype)

    @abstractmethod
    def bake(self) -> nn.Module:
        """The same map as plain PyTorch modules with fixed weights."""

    def fill(self, plain: nn.Conv2d | nn.Linear, weight: Tensor) -> None:
        """Give a plain layer a fixed copy of the weight and of the bias."""
        weight = weight.detach().clone(memory_format=torch.contiguous_format)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_remembered": None}


def _state(module: nn.Module) -> tuple[Any, ...]:
    tensors = chain(module.parameters(), module.buffers())
    return (module.training, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors))
