"""Labels of data sets, methods, architectures, radii and attacks in tables and in the original's folders.

A name without a label here appears unchanged. Radii are l2 over pixels in [0, 1]. Two that differ by at most 1e-6 are
equal, because some files have 0.1411764706 for 36/255.
"""

from collections.abc import Mapping

from lconvnet.ops.rounding import decimal

DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "stl10": "STL-10"}
ARCHITECTURES = {
    "fc": "FC-3",
    "small": "Small",
    "large": "Large",
    "kw-small": "Small",
    "kw-large": "Large",
    "kw-resnet": "ResNet",
    "qw": "QW",
    "critic": "Critic",
}
FC3_WIDTHS = [1024, 1024, 1024]
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
NETWORKS = {"kw-small": "KW", "kw-large": "KW", "kw-resnet": "KW", "qw": "RK-L2NE"}
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
PUBLISHED = tuple(BASELINES.values())
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


def folder_of(label: str, folders: Mapping[str, str]) -> str:
    """Return the first folder that has a label, or the label itself.

    >>> folder_of("BCOP", METHOD_FOLDERS), folder_of("AOL", METHOD_FOLDERS)
    ('BCOP-Bjorck', 'AOL')
    """
    return next((folder for folder, known in folders.items() if known == label), label)


def same_eps(a: float, b: float) -> bool:
    """Return whether two radii are equal.

    >>> same_eps(0.1411764706, 36 / 255), same_eps(0.3, 0.31)
    (True, False)
    """
    return abs(a - b) <= EPS_TOLERANCE


def eps_label(eps: float) -> str:
    """Return a radius as papers write it.

    >>> eps_label(1.58), eps_label(0.1411764706), eps_label(0.1)
    ('1.58', '36/255', '0.1')
    """
    whole = round(eps * 255)
    fraction = len(f"{eps:g}") > 4 and whole and same_eps(eps, whole / 255)
    return f"{whole}/255" if fraction else format(decimal(eps).normalize(), "f")


def network_label(method: str, architecture: str = "", recipe: str = "") -> str:
    """Return the name of a method with its architecture and recipe; dense networks go by their architecture alone.

    >>> network_label("BCOP", "Large"), network_label("Orthogonal", "FC-3"), network_label("RKO", recipe="10 epochs")
    ('BCOP Large', 'FC-3', 'RKO (10 epochs)')
    """
    name = architecture if method == "Orthogonal" else f"{method} {architecture}".strip()
    return f"{name} ({recipe})" if recipe else name


def attack_label(attack: str) -> str:
    """Return the label of an attack.

    >>> attack_label("boundary_attack"), attack_label("my_attack"), attack_label("pgd(steps=20)")
    ('Boundary attack', 'my attack', 'PGD (steps=20)')
    """
    name, bracket, options = attack.partition("(")
    label = ATTACKS.get(name, name.replace("_", " "))
    return f"{label} ({options}" if bracket else label
