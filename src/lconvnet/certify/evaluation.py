"""The forward pass behind a certificate: plain sums, in the dtype that its error is bounded for."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lconvnet.ops.rounding import gamma

ONEDNN = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""Variables of the environment that oneDNN reads, and torch does not report."""

PLAIN = ("none", "ieee", "highest", "strict")
"""Names of the precision at which float32 is float32."""


def runs_as_sums(network: nn.Module) -> bool:
    """Whether the network's float32 products are ordinary sums of float32: on a CPU whose precision nobody lowered.

    There oneDNN convolves directly (``alg:convolution_direct`` in its own log), and in float32 unless torch or its
    environment variable says otherwise. Accelerators may take TensorFloat-32 or Winograd kernels.

    >>> runs_as_sums(nn.Linear(2, 2))
    True
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in network.parameters())
    return on_cpu and all(precision in PLAIN for precision in _precisions())


def refuse_other_sums(network: nn.Module) -> None:
    """Raise ``ValueError`` where an accelerator may round a float32 network otherwise than level "sound" accounts for.

    cuDNN convolves in TensorFloat-32 unless that is forbidden, and with Winograd or Fourier kernels where it likes.

    >>> refuse_other_sums(nn.Linear(2, 2))
    """
    tensors = chain(network.parameters(), network.buffers())
    if not any(tensor.device.type != "cpu" and tensor.dtype == torch.float32 for tensor in tensors):
        return
    if torch.backends.cudnn.enabled or any(precision not in PLAIN for precision in _accelerated_precisions()):
        raise ValueError(
            "network is in float32 on an accelerator, whose convolutions and products may be no plain sums of float32: "
            "for level='sound' set torch.backends.cudnn.enabled = False and "
            "torch.set_float32_matmul_precision('highest'), also where it is deployed, or use network.double()"
        )


def _accelerated_precisions() -> list[str]:
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return [torch.get_float32_matmul_precision()]
    return [backends.fp32_precision, backends.cuda.matmul.fp32_precision]


def _precisions() -> list[str]:
    """What oneDNN is told about float32, and what torch is: one setting before 2.9, one for each operation since."""
    told = [os.environ.get(name, "strict").lower() for name in ONEDNN]
    backends: Any = torch.backends  # torch declares half of these
    if not hasattr(backends, "fp32_precision"):
        return [*told, torch.get_float32_matmul_precision()]
    places = (backends, backends.mkldnn, backends.mkldnn.conv, backends.mkldnn.matmul)
    return [*told, *(place.fp32_precision for place in places)]


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """The logits in float64 on the CPU, computed in the dtype of the images without autocast or Winograd kernels.

    >>> logits_of(nn.Identity(), torch.ones(1, 2)).dtype
    torch.float64
    """
    device = next((tensor.device for tensor in network.parameters()), images.device)
    unfused = torch.backends.nnpack.flags(enabled=False)
    with torch.no_grad(), unfused, torch.autocast(device.type, enabled=False):
        logits = network(images.to(device))
    return logits.cpu().double()


def image_norms(images: Tensor) -> Tensor:
    """Upper bounds on the l2 norms of images in [0, 1], float64 on the CPU: ``(N,)``.

    >>> 2 <= float(image_norms(torch.ones(1, 1, 2, 2))) < 2.001
    True
    """
    flat = images.flatten(1)
    unit, tiny = torch.finfo(flat.dtype).eps / 2, torch.finfo(flat.dtype).tiny
    norms = torch.linalg.vector_norm(flat, dim=1).cpu().double()
    return (norms + (flat.shape[1] * tiny) ** 0.5) * (1 + gamma(flat.shape[1] + 4, unit))
