"""Images with labels, and the three splits of a data set: plain immutable records around uint8 tensors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lconvnet.data.errors import DataError
from lconvnet.ops.images import channels_last


@dataclass(frozen=True, eq=False)
class Images:
    """`N` labelled images: `images` uint8 `(N, C, H, W)`, `labels` int64 `(N,)` in `0 .. classes - 1`.

    `class_names` has one name a class ("0", "1", ... unless given); `files`, unless it is empty, says where each image
    lies below the set. Raises `DataError` when they disagree.

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
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.classes))))
        if len(self.class_names) != self.classes:
            raise DataError(
                f"class_names of {self.name!r} has {len(self.class_names)} names for classes={self.classes}"
            )
        require_pixels(self.images, f"images of {self.name!r}")
        if self.files and len(self.files) != len(self.images):
            raise DataError(f"files of {self.name!r} has {len(self.files)} names for {len(self.images)} images")
        _require_labels(self.labels, len(self.images), self.classes, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        return f"Images({self.name!r}, {len(self)} of {shape}, {_listed(self.class_names)})"

    def subset(self, indices: Sequence[int] | Tensor) -> "Images":
        """Return a copy of the images at `indices`, in that order (negative indices count from the end)."""
        index = _index(self, indices)
        files = tuple(self.files[i] for i in index.tolist()) if self.files else ()
        return replace(self, images=self.images.index_select(0, index), labels=self.labels[index], files=files)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} classes: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def require_pixels(images: Tensor, name: str) -> None:
    """Raise `DataError` unless these are 8-bit pixels `(N, C, H, W)`."""
    found = f"{getattr(images, 'dtype', type(images).__name__)} {tuple(getattr(images, 'shape', ()))}"
    if not isinstance(images, Tensor):
        raise DataError(
            f"{name} must be a uint8 tensor (N, C, H, W), got a {type(images).__name__}: torch.as_tensor(...)"
        )
    if images.dtype != torch.uint8:
        scaled = images.is_floating_point() and bool((images <= 1).all())
        way = "(255 * images).round().to(torch.uint8)" if scaled else "of values 0 to 255, images.to(torch.uint8)"
        raise DataError(f"{name} must be uint8 (N, C, H, W), got {found}: {way}")
    if images.ndim != 4:
        way = {3: "images[:, None] of grey images, images[None] of one"}.get(images.ndim, "reshape them")
        raise DataError(f"{name} must be uint8 (N, C, H, W), got {found}: {way}")
    if channels_last(images.shape):
        raise DataError(f"{name} must be uint8 (N, C, H, W), got {found}, channels last: images.permute(0, 3, 1, 2)")


def _require_labels(labels: Tensor, count: int, classes: int, name: str) -> None:
    """Raise `DataError` unless these are `(count,)` integers in `0 .. classes - 1`."""
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
    """Disjoint training, validation and test images of one data set; choose on `validation`, report on
    `test`.

    `note` holds what must stand beside every number made with the data (such as lossy pixels), or `""`.
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
        shape = " x ".join(map(str, self.image_shape))
        note = f", note: {self.note!r}" if self.note else ""
        return f"Splits({self.name!r}, {parts} of {shape}, {_listed(self.class_names)}{note})"

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
        """One name a class, at the label's place."""
        return self.train.class_names


def remarks(splits: Splits) -> tuple[str, ...]:
    """What makes numbers on the held-out images mean less: images that are in an earlier part, too, and classes that
    are not tested.

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
    """One short fingerprint an image, of its pixels."""
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
    if lowest >= 0:
        return index
    return torch.where(index < 0, index + len(images), index)  # for index_select, which copies rows as a whole
