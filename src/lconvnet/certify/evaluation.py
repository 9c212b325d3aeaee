"""The forward pass behind a certificate: plain sums, in the dtype that its error is bounded for."""

from __future__ import annotations

import os
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet.ops.rounding import gamma

ONEDNN = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""Variables of the environment that oneDNN reads, and torch does not report."""

PLAIN = ("none", "ieee", "highest", "strict", False)
"""Values of the settings under which float32 is float32."""


def runs_as_sums(network: nn.Module) -> bool:
    """Whether the network's float32 products are ordinary sums of float32: on a CPU whose precision nobody lowered.

    There oneDNN convolves directly (``alg:convolution_direct`` in its own log), and in float32 unless torch or its
    environment variable says otherwise. Accelerators may take TensorFloat-32 or Winograd kernels.

    >>> runs_as_sums(nn.Linear(2, 2))
    True
    """
    return _devices(network) <= {"cpu"} and not _lowered("cpu")


def refuse_other_sums(network: nn.Module) -> None:
    """Raise ``ValueError`` if a float32 network may be rounded otherwise than level "sound" accounts for.

    cuDNN convolves in TensorFloat-32 unless that is forbidden, and with Winograd or Fourier kernels if it likes;
    oneDNN multiplies in bfloat16 if it is allowed to. Of other accelerators nothing is known.

    >>> refuse_other_sums(nn.Linear(2, 2))
    """
    for device in sorted(_devices(network, torch.float32)):
        if lowered := _lowered(device):
            raise ValueError(
                f"network is in float32 on {device!r}, where its products need not be plain sums of float32: "
                f"level='sound' needs something else than {', '.join(lowered)}, also where the network is deployed; "
                "or use network.double()"
            )


def _devices(network: nn.Module, dtype: torch.dtype | None = None) -> set[str]:
    tensors = chain(network.parameters(), network.buffers())
    return {tensor.device.type for tensor in tensors if dtype in (None, tensor.dtype)}


def _lowered(device: str) -> list[str]:
    """The settings that let float32 products on a device be other than sums of float32."""
    if device not in ("cpu", "cuda"):
        return [f"the device {device!r}"]
    return [f"{name} = {value!r}" for name, value in _settings(device).items() if value not in PLAIN]


def _settings(device: str) -> dict[str, Any]:
    """What oneDNN or cuDNN is told about float32, and torch is: one setting before 2.9, one per operation since."""
    backends: Any = torch.backends  # torch declares half of these
    if device == "cpu":
        told: dict[str, Any] = {name: os.environ.get(name, "strict").lower() for name in ONEDNN}
        places = ("mkldnn", "mkldnn.conv", "mkldnn.matmul")
    else:
        told = {"torch.backends.cudnn.enabled": backends.cudnn.enabled}
        places = ("cuda.matmul",)
    if not hasattr(backends, "fp32_precision"):
        return told | {"torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision()}
    names = ("fp32_precision", *(f"{place}.fp32_precision" for place in places))
    return told | {f"torch.backends.{name}": attrgetter(name)(backends) for name in names}


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """The logits in float64 on the CPU, computed in the dtype of the network without autocast or Winograd kernels.

    >>> logits_of(nn.Identity(), torch.ones(1, 2)).dtype
    torch.float64
    """
    like = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), images)
    device = like.device
    unfused = torch.backends.nnpack.flags(enabled=False)
    with torch.no_grad(), unfused, torch.autocast(device.type, enabled=False):
        logits = network(images.to(device, like.dtype))
    return logits.cpu().double()


def image_norms(images: Tensor) -> Tensor:
    """Upper bounds on the l2 norms of images in [0, 1], float64 on the CPU: ``(N,)``.

    >>> 2 <= float(image_norms(torch.ones(1, 1, 2, 2))) < 2.001
    True
    """
    flat, tiny = images.flatten(1).cpu(), torch.finfo(torch.float64).tiny
    norms = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return (norms + (flat.shape[1] * tiny) ** 0.5) * (1 + gamma(flat.shape[1] + 4))
