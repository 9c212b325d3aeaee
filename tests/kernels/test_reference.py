"""The values of the original code: kernels, outputs, gradients and spectra in float64.

Tolerance 1e-9 as the project promises; the differences seen are below 1e-13, so a wrong formula cannot hide in it.
"""

import pytest
import torch

from lconvnet.kernels import BCOP, OSSN, RKL2NE, RKO, SVCM
from lconvnet.ops import circular, fourier
from lconvnet.ops.orthogonalize import orthogonalize
from lconvnet.ops.sorting import group_sort, max_min

CASES = {
    "bcop_3x3_8to8": BCOP,
    "bcop_3x3_3to12": BCOP,
    "bcop_3x3_12to5": BCOP,
    "bcop_2x2_12to6": BCOP,
    "bcop_5x5_4to4": BCOP,
    "rko_3x3_6to8": RKO,
    "rko_2x2_12to6": RKO,
    "rkl2ne_3x3_6to8": RKL2NE,
    "ossn_3x3_6to8": OSSN,
    "svcm_3x3_6to8": SVCM,
}


@torch.no_grad()
def with_reference_parameters(case, reference):
    """Our kernel with the original's parameters: BCOP's square factors are cut to the columns that its mask keeps."""
    out_channels, in_channels, kernel_size, _ = reference(f"{case}/kernel").shape
    kernel = CASES[case](in_channels, out_channels, kernel_size, input_size=(8, 8), dtype=torch.float64)
    if isinstance(kernel, BCOP):
        factors = orthogonalize(reference(f"{case}/param/param_matrices"))
        H = factors[0, :in_channels, :out_channels]
        kernel.H.copy_(H if in_channels <= out_channels else H.T)
        kernel.R.copy_(factors[1:, :, : kernel.R.shape[-1]])
        return kernel.eval()
    kernel.W.copy_(reference(f"{case}/param/weight"))
    if isinstance(kernel, OSSN):
        kernel.u.copy_(reference(f"{case}/buffer/u"))
        kernel.factor.copy_(reference(f"{case}/buffer/factor"))
    if isinstance(kernel, SVCM):
        kernel.project_()
    return kernel.eval()


@pytest.mark.parametrize("case", CASES)
def test_convolution(case, reference):
    kernel = with_reference_parameters(case, reference)
    weight = kernel()
    x = reference(f"{case}/x").requires_grad_()
    y = circular.conv2d(x, weight) + reference(f"{case}/param/bias")[:, None, None]
    y.backward(reference(f"{case}/grad_y"))
    tolerance = 1e-6 if case.startswith("svcm") else 1e-9
    for ours, name in [
        (weight, "kernel"),
        (y, "y"),
        (x.grad, "grad_x"),
        (fourier.circular_singular_values(weight.detach(), (8, 8)), "singular_values"),
    ]:
        assert torch.allclose(ours, reference(f"{case}/{name}"), rtol=0, atol=tolerance), name
    if case.startswith("svcm"):
        assert torch.allclose(weight, reference(f"{case}/projected_weight"), rtol=0, atol=tolerance)
    if not case.startswith("bcop"):  # its free matrices are cut to half their columns here
        assert torch.allclose(kernel.W.grad, reference(f"{case}/grad/weight"), rtol=0, atol=tolerance)


def test_dense(reference):
    W = reference("bjorck_linear/weight").requires_grad_()
    x = reference("bjorck_linear/x").requires_grad_()
    U = orthogonalize(W)
    y = x @ U.T + reference("bjorck_linear/bias")
    y.backward(reference("bjorck_linear/grad_y"))
    for ours, name in [(U, "ortho"), (y, "y"), (x.grad, "grad_x"), (W.grad, "grad_weight")]:
        assert torch.allclose(ours, reference(f"bjorck_linear/{name}"), rtol=0, atol=1e-9), name


def test_parts_that_only_move_numbers(reference):
    assert torch.equal(torch.nn.functional.pixel_unshuffle(reference("unshuffle/x"), 2), reference("unshuffle/y"))
    assert torch.equal(max_min(reference("maxmin_split/x")), reference("maxmin_split/y"))
    assert torch.equal(group_sort(reference("groupsort3/x"), 3), reference("groupsort3/y"))
