"""Settings as plain JSON values, which a record states and a resumed run compares."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lconvnet.data import Images, Splits

Place = tuple[str, ...]
LENGTH: frozenset[Place] = frozenset({("epochs",), ("steps",), ("settings", "training", "epochs")})
"""The places in the settings of a run that state its length."""
MOVED = {
    "lconvnet.data.sets.crop_and_flip": "lconvnet.data.augment.crop_and_flip",
    "lconvnet.tasks.objectives.GradientPenalty": "lconvnet.gan.penalty.GradientPenalty",
    "lconvnet.tasks.objectives.WeightClipping": "lconvnet.gan.clipping.WeightClipping",
    "lconvnet.tasks.objectives.LipschitzCritic": "lconvnet.gan.lipschitz.LipschitzCritic",
}
"""New names of settings that have moved, with the first names; records keep the first names to stay comparable."""
OUTSIDE: frozenset[Place] = frozenset(
    {
        *(("data", name) for name in ("name", "note", "test")),
        *(("from", name) for name in ("file", "epoch", "sha256", "note")),
        ("settings", "data", "name"),  # of a configuration
        ("settings", "generated"),  # the path of an estimate's samples
    }
)


def describe(value: Any) -> Any:
    """`value` as JSON: numbers and text unchanged, dataclasses and partials by name and fields, functions by name.

    >>> from functools import partial
    >>> describe(partial(sorted, reverse=True))
    {'type': 'builtins.sorted', 'reverse': True}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    return _describe_object(value)


def _describe_object(value: Any) -> Any:
    if isinstance(value, functools.partial):
        arguments = {"arguments": describe(value.args)} if value.args else {}
        return {"type": _name(value.func), **arguments, **describe(value.keywords)}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "type": _name(type(value)),
            **{f.name: describe(getattr(value, f.name)) for f in fields(value)},
        }
    return _name(value) if callable(value) else str(value)


def _name(value: Any) -> str:
    named = value if isinstance(getattr(value, "__qualname__", None), str) else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    return MOVED.get(name, name)


def described(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a training as JSON: networks, optimisers and images by their fingerprints, the rest by
    `describe`."""
    return json.loads(json.dumps({name: _described(value) for name, value in inputs.items()}))


def _described(value: Any) -> Any:
    if isinstance(value, nn.Module) and next(value.parameters(), None) is not None:
        return describe_model(value)
    if isinstance(value, Optimizer):
        return describe_optimizer(value)
    if isinstance(value, Splits):
        return {"name": value.name, "note": value.note, **describe_splits(value)}
    if isinstance(value, Images):
        return {"name": value.name, **describe_images(value)}
    return describe(value)


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Size and fingerprint of an architecture: its printed form, and the name, shape and type of every stored
    tensor."""
    shapes = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in model.state_dict().items()]
    text = "\n".join([str(model), *shapes])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "architecture": hashlib.sha256(text.encode()).hexdigest()}


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Name and options of an optimiser (of its first group), before a schedule changes them."""
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return {"type": _name(type(optimizer)), **describe(options)}


def describe_images(images: Images) -> dict[str, Any]:
    """Number of images and a fingerprint of pixels and labels."""
    digest = hashlib.sha256(images.images.cpu().contiguous().numpy().data)
    digest.update(images.labels.cpu().contiguous().numpy().data)
    return {"images": len(images), "sha256": digest.hexdigest()}


def describe_splits(splits: Splits) -> dict[str, Any]:
    """Number and fingerprint of the images of each part; a training never sees the test images."""
    return {part: describe_images(getattr(splits, part)) for part in ("train", "validation", "test")}


def versions(device: torch.device, processes: int = 1) -> dict[str, str]:
    """The versions that, besides the settings, decide the last digits of a result."""
    packages = {name: _version(name) for name in ("lconvnet", "torch", "lightning-fabric")}
    machine = {
        "python": platform.python_version(),
        "device": device.type,
        "threads": str(torch.get_num_threads()),
    }
    several = {"processes": str(processes)} if processes > 1 else {}
    return {**packages, **machine, **several}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def identity(settings: Any, place: Place = (), outside: frozenset[Place] = OUTSIDE) -> Any:
    """The part of the settings that two runs of one training share: all but the places `outside`.

    By default these are the paths and names of the images, the test images, which a training never sees, and facts on
    the first weights. Fingerprints identify the images.
    >>> identity({"seed": 0, "data": {"name": "flowers", "sha256": "1f"}, "from": {"run": "/a/../old", "epoch": 3}})
    {'seed': 0, 'data': {'sha256': '1f'}, 'from': {'run': '/old'}}
    """
    if place == ("from", "run") and isinstance(settings, str):
        return os.path.realpath(settings)
    if not isinstance(settings, Mapping):
        return settings
    places = {key: (*place, key) for key in settings}
    return {key: identity(settings[key], at, outside) for key, at in places.items() if at not in outside}


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """One line per setting that differs, nested names joined by dots.

    >>> list(differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}))
    ['a.b: 1, now 3']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {old!r}, now {new!r}"
