"""Labelled images, the three splits of a data set, and batches: immutable records around uint8 tensors.

The held-out images depend only on the labels, the size and a seed. *The test images never depend on the seed*, so a
model trained with one seed and evaluated with another has not seen them. Files come class after class. Without a
stratified order, the first images would all be of one class.
"""

import difflib
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lconvnet.ops.images import channels_last


class DataError(ValueError):
    """Unusable images, labels, files or arguments; the message names the culprit and the way out."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known words, or `""` if none is near.

    >>> nearest("mnits", ["mnist", "cifar10"]), nearest("qqq", ["mnist"])
    ("; did you mean 'mnist'?", '')
    """
    lowered = {item.lower(): item for item in known}
    close = [lowered[key] for key in difflib.get_close_matches(word.lower(), lowered, n=2, cutoff=0.5)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


@dataclass(frozen=True, eq=False)
class Images:
    """`N` labelled images: `images` uint8 `(N, C, H, W)`, `labels` int64 `(N,)` in `0 .. classes - 1`.

    `class_names` has one name per class ("0", "1", ... by default). `files`, unless it is empty, says where each image
    lies below the set. Raises `DataError` if they disagree.

    >>> pixels, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1])
    >>> pool = Images(pixels, labels, 2, "pets", ("cat", "dog"))
    >>> len(pool), pool.classes, pool.subset([2, 0]).labels.tolist()
    (3, 2, [1, 0])
    >>> pool
    Images('pets', 3 of 1 x 2 x 2, 2 classes: cat, dog)
    """

    images: Tensor
    labels: Tensor
    classes: int
    name: str
    class_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.class_names or tuple(map(str, range(self.classes)))
        object.__setattr__(self, "class_names", names)
        if len(names) != self.classes:
            raise DataError(f"class_names of {self.name!r} has {len(names)} names for classes={self.classes}")
        _require_pixels(self.images, f"images of {self.name!r}")
        if self.files and len(self.files) != len(self.images):
            raise DataError(f"files of {self.name!r} has {len(self.files)} names for {len(self.images)} images")
        _require_labels(self.labels, len(self.images), self.classes, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Images({self.name!r}, {len(self)} of {_outline(self)})"

    def subset(self, indices: Sequence[int] | Tensor) -> "Images":
        """Return a copy of the images at `indices`, in that order (negative indices count from the end)."""
        index = _index(self, indices)
        files = tuple(self.files[i] for i in index.tolist()) if self.files else ()
        return replace(self, images=self.images.index_select(0, index), labels=self.labels[index], files=files)


def _outline(images: Images) -> str:
    """Return the shape and the classes of images for a line about them."""
    shape, names = " x ".join(map(str, images.images.shape[1:])), images.class_names
    return f"{shape}, {len(names)} classes: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def _require_pixels(images: Tensor, name: str) -> None:
    if not isinstance(images, Tensor):
        kind = type(images).__name__
        raise DataError(f"{name} must be a uint8 tensor (N, C, H, W), got a {kind}: torch.as_tensor(...)")
    if images.dtype != torch.uint8:
        scaled = images.is_floating_point() and bool((images <= 1).all())
        way = ": (255 * images).round().to(torch.uint8)" if scaled else ": of values 0 to 255, images.to(torch.uint8)"
    elif images.ndim != 4:
        ways = {3: ": images[:, None] of grey images, images[None] of one"}
        way = ways.get(images.ndim, ": reshape them")
    elif channels_last(images.shape):
        way = ", channels last: images.permute(0, 3, 1, 2)"
    else:
        return
    raise DataError(f"{name} must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}{way}")


def _require_labels(labels: Tensor, count: int, classes: int, name: str) -> None:
    if not isinstance(labels, Tensor):
        ways = "of integers, torch.as_tensor(labels); of names, their places in class_names"
        raise DataError(f"labels of {name!r} must be an int64 tensor ({count},), got a {type(labels).__name__}: {ways}")
    if labels.dtype != torch.int64 or labels.shape != (count,):
        way = "labels.argmax(1) of one-hot rows" if labels.ndim == 2 else "labels.long(), one for each image"
        raise DataError(f"labels of {name!r} must be int64 ({count},), got {labels.dtype} {tuple(labels.shape)}: {way}")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"label {int(labels[row])} of image {row} of {name!r} is not in 0..{classes - 1}: correct it")


@dataclass(frozen=True, eq=False)
class Splits:
    """Disjoint training, validation and test images of one data set; choose on `validation`, report on `test`.

    `note` holds the remarks that must stand beside every number made with the data (such as lossy pixels), or `""`.
    """

    train: Images
    validation: Images
    test: Images
    name: str
    note: str = ""

    def __post_init__(self) -> None:
        for role, part in (("validation", self.validation), ("test", self.test)):
            if part.images.shape[1:] != self.train.images.shape[1:]:
                shapes = f"{tuple(part.images.shape[1:])}, train has {self.image_shape}"
                raise DataError(f"{role} images of {self.name!r} have shape {shapes}: convert or resize them")
            if part.class_names != self.train.class_names:
                raise DataError(f"classes of {role} are {part.class_names}, of train {self.class_names}: use the same")

    def __repr__(self) -> str:
        parts = ", ".join(f"{role}: {len(getattr(self, role))}" for role in ("train", "validation", "test"))
        note = f", note: {self.note!r}" if self.note else ""
        return f"Splits({self.name!r}, {parts} of {_outline(self.train)}{note})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width `(C, H, W)`."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.train.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, at the label's place."""
        return self.train.class_names


def remarks(splits: Splits) -> tuple[str, ...]:
    """Return the faults of the held-out images: those that an earlier part also has, and classes without test images.

    >>> pool = Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), 2, "toy")
    >>> remarks(Splits(pool, pool.subset([]), pool.subset([1]), "toy"))
    ('1 of 1 test images are in an earlier part, too', "no test image of class '0'")
    """
    found, known = list[str](), set(digests(splits.train))
    for role, part in (("validation", splits.validation), ("test", splits.test)):
        own = digests(part)
        if count := sum(digest in known for digest in own):
            found.append(f"{count} of {len(part)} {role} images are in an earlier part, too")
        known.update(own)
    tested = set(splits.test.labels.tolist())
    missing = [repr(name) for label, name in enumerate(splits.class_names) if label not in tested]
    found += [f"no test image of class {', '.join(missing[:6])}"] if missing else []
    return tuple(found)


def digests(part: Images) -> list[bytes]:
    """Return one short fingerprint of the pixels per image."""
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in part.images.contiguous().numpy()]


def batch(images: Images, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 images `(B, C, H, W)` in [0, 1] (uint8 / 255) and int64 labels `(B,)`.

    Raises `DataError` for indices that are not integers or lie outside the set.

    >>> pool = Images(torch.full((2, 1, 1, 1), 51, dtype=torch.uint8), torch.tensor([0, 1]), 2, "toy")
    >>> x, y = batch(pool, [1])
    >>> round(x.item(), 6), y.tolist()
    (0.2, [1])
    """
    index = _index(images, indices)
    return images.images.index_select(0, index).float().div_(255), images.labels.index_select(0, index)


def _index(images: Images, indices: Sequence[int] | Tensor) -> Tensor:
    if not isinstance(images, Images):
        way = "of splits, one of its parts" if isinstance(images, Splits) else "make them with lconvnet.data.Images"
        raise DataError(f"images is a {type(images).__name__}, not lconvnet.data.Images: {way}")
    try:
        index = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"indices must be a list of integers, got {indices!r:.60}") from None
    if index.ndim != 1 or (index.numel() and (index.dtype == torch.bool or index.is_floating_point())):
        raise DataError(f"indices must be a list of integers, got {index.dtype} {tuple(index.shape)}")
    index = index.to(images.images.device, torch.int64)
    lowest, highest = (int(end) for end in index.aminmax()) if index.numel() else (0, -1)
    if lowest < -len(images) or highest >= len(images):
        wrong = lowest if lowest < -len(images) else highest
        raise DataError(f"indices has {wrong}, but {images.name!r} holds {len(images)} images")
    # index_select copies whole rows, and takes no negative indices.
    return torch.where(index < 0, index + len(images), index) if lowest < 0 else index


def crop_and_flip(x: Tensor, *, padding: int = 4, generator: torch.Generator) -> Tensor:
    """Pad every image with zeros, crop it back at a random place, and mirror it left-right with probability 1/2.

    `x` and the result are `(B, C, H, W)`, float or uint8, on any device. Each image draws its own offset from the
    `(2 padding + 1)^2` places, uniformly, and its own mirror. All draws come from `generator`, in this order: rows
    `(B,)` and columns `(B,)` as one `(2, B)` draw, then mirrors `(B,)`. Raises `DataError` (a `ValueError`) for another
    number of dimensions or a negative padding.

    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> crop_and_flip(x, padding=1, generator=torch.Generator().manual_seed(0)).tolist()
    [[[[2.0, 0.0], [0.0, 0.0]]]]
    """
    if not isinstance(x, Tensor):
        raise DataError(f"x is a {type(x).__name__}: pass a tensor (B, C, H, W), torch.as_tensor(x)")
    if channels_last(x.shape):
        raise DataError(f"x has shape {tuple(x.shape)}, channels last: expected (B, C, H, W), x.permute(0, 3, 1, 2)")
    if x.ndim != 4:
        raise DataError(f"x must be a batch (B, C, H, W), got shape {tuple(x.shape)}: add a batch dimension")
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise DataError(f"padding must be an integer of at least 0, got {padding!r}")
    count, channels, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator, device=generator.device)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator, device=generator.device).to(x.device)
    stride = width + 2 * padding
    start = (offsets[0] * stride + offsets[1]).to(x.device)
    places = _pixels(height, width, stride, x.device).index_select(0, mirrored.flatten()).add_(start[:, None])
    flat = places[:, None].expand(-1, channels, -1)
    return F.pad(x, (padding,) * 4).flatten(2).gather(2, flat).reshape(x.shape)


@lru_cache(maxsize=8)
def _pixels(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """Return where the pixels of a crop lie in rows of length `stride`, straight and mirrored: `(2, height width)`."""
    rows = torch.arange(height, device=device)[:, None] * stride
    straight = rows + torch.arange(width, device=device)
    return torch.stack([straight, straight.flip(1)]).flatten(1)


_TEST_SEED = 0


@dataclass(frozen=True)
class Options:
    """The arguments of `load`; raises `DataError` naming the first unusable one.

    >>> Options(image_size=32).sides
    (32, 32)
    """

    validation: int | float | None = None
    test: int | float | None = None
    seed: int = 0
    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if not _whole(self.seed, 0, 2**63 - 1):
            raise DataError(f"seed must be an integer of at least 0, got {self.seed!r}")
        given = self.image_size
        pair = isinstance(given, tuple | list) and len(given) == 2 and all(_whole(side, 1, 4096) for side in given)
        if given is not None and not pair and not _whole(given, 1, 4096):
            raise DataError(f"image_size must be one number or (height, width), each in 1..4096, got {given!r}")
        if self.channels is not None and not (_whole(self.channels, 1, 3) and self.channels != 2):
            raise DataError(f"channels must be 1 (grey) or 3 (colour), got {self.channels!r}")
        if self.limit is not None and not _whole(self.limit, 1, 2**63 - 1):
            raise DataError(f"limit must be a number of images of at least 1, got {self.limit!r}")

    @property
    def sides(self) -> tuple[int, int] | None:
        """The image size as (height, width)."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def stratified_order(labels: Tensor, *, seed: int = _TEST_SEED) -> Tensor:
    """Return a permutation of `0 .. N-1` in which every head holds each class in nearly its share.

    After a seeded shuffle, the r-th image of a class of n gets the key `(r + 1/2) / n`. Sorting by the key spreads each
    class evenly: a head of k images holds `k n / N` of the class, up to one image per class. A class of one image comes
    in the middle, so a head shorter than half leaves it out.

    >>> labels = torch.tensor([0] * 8 + [1] * 4)
    >>> labels[stratified_order(labels, seed=0)[:6]].bincount().tolist()
    [4, 2]
    """
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[shuffle]
    grouped = torch.argsort(shuffled, stable=True)
    counts = torch.bincount(shuffled)
    starts = (counts.cumsum(0) - counts)[shuffled[grouped]]
    key = torch.empty(len(labels), dtype=torch.float64)
    key[grouped] = (torch.arange(len(labels)) - starts + 0.5) / counts[shuffled[grouped]].double()
    return shuffle[torch.argsort(key, stable=True)]


def held_out(labels: Tensor, count: int, *, seed: int = _TEST_SEED) -> tuple[Tensor, Tensor]:
    """Split `0 .. N-1` into `(head, rest)`: `count` stratified indices, and the others, both in shuffled order.

    >>> head, rest = held_out(torch.tensor([0, 0, 1, 1]), 2, seed=0)
    >>> sorted(head.tolist() + rest.tolist()), len(head)
    ([0, 1, 2, 3], 2)
    """
    order = stratified_order(labels, seed=seed)
    head, rest = order[:count], order[count:]
    shuffle = torch.Generator().manual_seed(seed)
    return head[torch.randperm(len(head), generator=shuffle)], rest[torch.randperm(len(rest), generator=shuffle)]


def size(argument: str, value: int | float | None, *, stored: int, available: int, default: int, least: int = 1) -> int:
    """Turn a count, a fraction of `stored` images, or `None` (the default) into a count in `least .. available - 1`.

    >>> size("validation", 0.25, stored=8, available=6, default=1)
    2
    """
    if value is None:
        count = max(1, default)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{argument} must be a count or a fraction, got {value!r}: such as 500 or 0.1")
    elif isinstance(value, float):
        if not 0 < value < 1:
            raise DataError(f"{argument}={value} must be a fraction between 0 and 1, or an integer count")
        count = max(1, round(value * stored))
    else:
        count = value
    if not least <= count < available:
        raise DataError(f"{argument}={count} of {available} images must be in {least}..{available - 1}")
    return count


def select(labels: dict[str, Tensor], title: str, options: Options) -> dict[str, tuple[str, Tensor]]:
    """Return the stored part and the indices in it for each role. Takes out the test images, then applies the limit."""
    for role, asked in (("test", options.test), ("validation", options.validation)):
        if role in labels and asked is not None:
            raise DataError(f"{role}={asked}, but {title!r} has {role} images of its own: drop the argument")
    selected = {role: (role, torch.arange(len(part))) for role, part in labels.items()}
    if "test" not in labels:
        total = len(labels["train"])
        count = size("test", options.test, stored=total, available=total, default=min(total // 5, 10_000))
        held, rest = held_out(labels["train"], count)
        selected |= {"train": ("train", rest), "test": ("train", held)}
    for role, (stored, index) in selected.items():
        if options.limit is not None and options.limit < len(index):
            kept, _ = held_out(labels[stored][index], options.limit)
            selected[role] = (stored, index[kept])
    return selected


def mixed(parts: dict[str, Images], stored: Collection[str]) -> dict[str, Images]:
    """Return the images of each part in stratified order, except a part that still gives validation images."""
    kept = () if "validation" in stored else ("train",)
    return {role: part if role in kept else part.subset(stratified_order(part.labels)) for role, part in parts.items()}


def split(parts: dict[str, Images], options: Options, *, carved: bool) -> Splits:
    """Take the validation images out of the training images if none are stored.

    `carved` says that the test images came from the same stored part.
    """
    train, test = parts["train"], parts["test"]
    validation = parts.get("validation")
    if validation is None:
        stored = len(train) + (len(test) if carved else 0)
        default = min(stored // 10, 5_000)
        count = size("validation", options.validation, stored=stored, available=len(train), default=default, least=0)
        held, rest = held_out(train.labels, count, seed=options.seed)
        train, validation = train.subset(rest), train.subset(held)
    empty = (torch.bincount(train.labels, minlength=train.classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"class {train.class_names[empty[0]]!r} has no training image left: hold out fewer, or add some"
        )
    return Splits(train, validation, test, train.name)
