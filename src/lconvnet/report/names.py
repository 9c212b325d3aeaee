"""The names under which data sets, methods, architectures, radii and attacks appear in tables.

Radii are l2 over pixels in [0, 1]; two of them are the same where they differ by at most 1e-6, for 36/255 is
written 0.1411764706 in some files.
"""

from collections.abc import Iterable

from lconvnet.ops.rounding import decimal

DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "stl10": "STL-10"}
ARCHITECTURES = {
    "small": "Small",
    "large": "Large",
    "fc": "FC-3",
    "kw-small": "Small",
    "kw-large": "Large",
    "kw-resnet": "ResNet",
}
FC3_WIDTHS = (1024, 1024, 1024)
ACTIVATIONS = {"maxmin": "MaxMin", "relu": "ReLU"}
CONVS = {
    "ossn": "OSSN",
    "rko": "RKO",
    "svcm": "SVCM",
    "rkl2ne": "RK-L2NE",
    "bcop-fixed": "BCOP-Fixed",
    "bcop": "BCOP",
    "unconstrained": "Unconstrained",
}
LINEARS = {"orthogonal": "Orthogonal", "cholesky": "Orthogonal", "spectral-norm": "Spectral norm"}
METHOD_FOLDERS = {
    "BCOP-Bjorck": "BCOP",
    "BCOP": "BCOP",
    "BCOP-Fixed": "BCOP-Fixed",
    "RKO": "RKO",
    "OSSN": "OSSN",
    "SVCM": "SVCM",
    "L2Nonexpansive": "RK-L2NE",
}
FC_FOLDERS = {"3-layers": "Orthogonal"}
BASELINES = {"kw": "KW", "qian": "QW"}
ATTACKS = {
    "pgd": "PGD",
    "fgsm": "FGSM",
    "apgd": "APGD",
    "autoattack": "AutoAttack",
    "square": "Square",
    "deepfool": "DeepFool",
    "carlini_wagner": "Carlini-Wagner",
    "ddn": "DDN",
    "fmn": "FMN",
    "hop_skip_jump": "HopSkipJump",
    "boundary_attack": "Boundary attack",
    "pointwise": "Pointwise",
}
EPS = {"mnist": 1.58, "cifar10": 36 / 255}
OTHER_EPS = {"mnist": 0.3, "cifar10": 0.1}
EPS_TOLERANCE = 1e-6


def same_eps(a: float, b: float) -> bool:
    """Return whether two radii are one.

    >>> same_eps(0.1411764706, 36 / 255), same_eps(0.3, 0.31)
    (True, False)
    """
    return abs(a - b) <= EPS_TOLERANCE


def distinct_eps(radii: Iterable[float]) -> list[float]:
    """Return the radii that differ, in ascending order.

    >>> distinct_eps([1.58, 0.1411764706, 36 / 255])
    [0.1411764705882353, 1.58]
    """
    kept: list[float] = []
    for eps in sorted(radii):
        if not kept or not same_eps(kept[-1], eps):
            kept.append(eps)
    return kept


def eps_label(eps: float) -> str:
    """Return a radius as it is written in papers.

    >>> eps_label(1.58), eps_label(0.1411764706), eps_label(0.1)
    ('1.58', '36/255', '0.1')
    """
    whole = round(eps * 255)
    fraction = len(f"{eps:g}") > 4 and whole and same_eps(eps, whole / 255)
    return f"{whole}/255" if fraction else format(decimal(eps).normalize(), "f")


def network_label(method: str, architecture: str = "") -> str:
    """Return the name of a method with its architecture; dense networks go by the latter alone.

    >>> network_label("BCOP", "Large"), network_label("Orthogonal", "FC-3"), network_label("RKO")
    ('BCOP Large', 'FC-3', 'RKO')
    """
    return architecture if method == "Orthogonal" else f"{method} {architecture}".strip()


def data_label(data: str) -> str:
    """Return a data set's name in tables: the paper's spelling, or the name itself."""
    return DATA.get(data, data)


def attack_label(key: str) -> str:
    """Return the name of an attack from its key in results.yaml.

    >>> attack_label("boundary_attack-ub"), attack_label("my_attack-ub"), attack_label("pgd(steps=20)-ub")
    ('Boundary attack', 'my attack', 'PGD (steps=20)')
    """
    name, bracket, options = key.removesuffix("-ub").partition("(")
    label = ATTACKS.get(name, name.replace("_", " "))
    return f"{label} ({options}" if bracket else label
