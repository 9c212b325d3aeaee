"""Images with labels, and the three splits of a data set: plain immutable records around uint8 tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lconvnet.data.errors import DataError


@dataclass(frozen=True, eq=False)
class Images:
    """`N` labelled images: `images` uint8 `(N, C, H, W)`, `labels` int64 `(N,)` in `0 .. classes - 1`.

    `class_names` has one name a class ("0", "1", ... unless given). Raises `DataError` when they disagree.

    >>> pixels, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1])
    >>> pool = Images(pixels, labels, 2, "pets", ("cat", "dog"))
    >>> len(pool), pool.classes, pool.subset([2, 0]).labels.tolist()
    (3, 2, [1, 0])
    """

    images: Tensor
    labels: Tensor
    classes: int
    name: str
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.classes))))
        if len(self.class_names) != self.classes:
            raise DataError(
                f"class_names of {self.name!r} has {len(self.class_names)} names for classes={self.classes}"
            )
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(
                f"images of {self.name!r} must be uint8 (N, C, H, W), got {found}: multiply by 255 and round"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise DataError(f"labels of {self.name!r} must be int64 ({len(self.images)},), got {found}")
        wrong = (self.labels < 0) | (self.labels >= self.classes)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            label = int(self.labels[row])
            raise DataError(
                f"label {label} of image {row} of {self.name!r} is not in 0..{self.classes - 1}: correct it"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | Tensor) -> "Images":
        """Return a copy of the images at `indices`, in that order (negative indices count from the end)."""
        index = _index(self, indices)
        return replace(self, images=self.images.index_select(0, index), labels=self.labels[index])


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
    index = torch.as_tensor(indices)
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
