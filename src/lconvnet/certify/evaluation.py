"""The forward pass behind a certificate: plain sums, in the dtype that its error is bounded for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lconvnet.ops.rounding import gamma


def runs_as_sums(network: nn.Module) -> bool:
    """Whether the network's float32 products are ordinary sums: on a CPU with torch's default precision.

    Accelerators may take TensorFloat-32 or Winograd kernels.

    >>> runs_as_sums(nn.Linear(2, 2))
    True
    """
    return (
        all(tensor.device.type == "cpu" for tensor in network.parameters())
        and torch.get_float32_matmul_precision() == "highest"
    )


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
