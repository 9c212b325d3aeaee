"""Weights of the KW networks in their authors' files: state dicts by layer number, of which the first is evaluated.

A file holds `state_dict` (a list of networks that pass on what they cannot prove, or one network), `epoch` and more
that is not needed. Layers are numbered with their activations; a residual block keeps its two convolutions and the
shortcut under `Ws`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from lconvnet.importing import pickles

BLOCKS = range(1, 5)
LAYERS: Mapping[str, Mapping[str, str]] = {
    "kw-small": {"conv1": "0", "conv2": "2", "linear1": "5", "linear2": "7"},
    "kw-large": {
        **{f"conv{i + 1}": str(2 * i) for i in range(4)},
        **{f"linear{i + 1}": str(9 + 2 * i) for i in range(3)},
    },
    "kw-resnet": {
        "conv": "0",
        **{f"block{i}.branches.0.conv": f"{4 * i}.Ws.0" for i in BLOCKS},
        **{f"block{i}.branches.1.conv1": f"{4 * i - 2}.Ws.0" for i in BLOCKS},
        **{f"block{i}.branches.1.conv2": f"{4 * i}.Ws.2" for i in BLOCKS},
        "linear1": "19",
        "linear2": "21",
    },
}
"""Path of each layer here -> there."""


def load(model: nn.Sequential, architecture: str, path: Path) -> int:
    """Put the weights of a file into the network; return the epoch that it names, 0 where it names none.

    Raises ValueError for a file that is no such file, is of another architecture, or names anything to be run.
    """
    content = pickles.read(path)
    networks = content.get("state_dict") if isinstance(content, dict) else None
    first = networks[0] if isinstance(networks, list) and networks else networks
    weights = _renamed(pickles.state_dict(first, path), LAYERS[architecture], path)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, {architecture} needs {tuple(shape)}"
            )
    model.load_state_dict(weights)
    epoch = content.get("epoch", 0)
    return epoch if type(epoch) is int and epoch >= 0 else 0


def _renamed(weights: Mapping[str, Tensor], layers: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    names = {f"{there}.{kind}": f"{here}.{kind}" for here, there in layers.items() for kind in ("weight", "bias")}
    if set(names) != set(weights):
        other = ", ".join(sorted(set(names) ^ set(weights))[:3])
        raise ValueError(f"{path} has weights of another network: {other}, … do not match; choose model.architecture")
    return {names[name]: value for name, value in weights.items()}
