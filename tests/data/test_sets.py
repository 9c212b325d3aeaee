import pytest
import torch

from lconvnet.data import DataError, Images, Splits, batch, crop_and_flip


def pool(count=6, shape=(1, 2, 3), classes=3, name="pool", class_names=()):
    pixels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Images(pixels, torch.arange(count) % classes, classes, name, class_names)


def test_images_know_their_size_classes_and_subsets():
    images = pool()
    assert (len(images), images.classes, images.class_names) == (6, 3, ("0", "1", "2"))
    part = images.subset(torch.tensor([4, 0]))
    assert torch.equal(part.images, images.images[[4, 0]])
    assert part.labels.tolist() == [1, 0]
    assert (part.name, part.class_names) == (images.name, images.class_names)


def test_files_go_with_their_images():
    images = pool(count=3)
    named = Images(images.images, images.labels, 3, "pool", files=("a.png", "b.png", "c.png"))
    assert named.subset([2, -3]).files == ("c.png", "a.png") and images.subset([0]).files == ()
    with pytest.raises(DataError, match="files of 'pool' has 1 names for 3 images"):
        Images(images.images, images.labels, 3, "pool", files=("a.png",))


def test_images_and_splits_print_in_one_line():
    images = pool(class_names=("cat", "dog", "ship"))
    assert repr(images) == "Images('pool', 6 of 1 x 2 x 3, 3 classes: cat, dog, ship)"
    splits = Splits(images, images.subset([0]), images.subset([1, 2]), "pool", "half of it")
    counts = "train: 6, validation: 1, test: 2"
    assert repr(splits) == f"Splits('pool', {counts} of 1 x 2 x 3, 3 classes: cat, dog, ship, note: 'half of it')"
    assert repr(pool(count=12, classes=12)).endswith("12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...)")


@pytest.mark.parametrize(
    "indices", [[3, 0, 3], torch.tensor([3, 0, 3]), (-3, 0, 3), torch.tensor([3, 0, 3], dtype=torch.uint8)]
)
def test_batch_is_float_in_zero_one(indices):
    images = pool()
    x, y = batch(images, indices)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    for i, source in enumerate([3, 0, 3]):
        exact = images.images[source].double() / 255
        assert (x[i].double() - exact).abs().max() <= 2**-24 / 2  # correctly rounded float32 below 1
        assert y[i] == images.labels[source]
    assert images.images.dtype == torch.uint8


def test_batch_ends_are_exact():
    images = Images(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1), torch.tensor([0, 1]), 2, "ends")
    assert batch(images, [0, 1])[0].flatten().tolist() == [0.0, 1.0]
    assert batch(images, [])[0].shape == (0, 1, 1, 1)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([6], "indices has 6, but 'pool' holds 6 images"),
        ([-7], "indices has -7"),
        ([0.5], "indices must be a list of integers, got torch.float32"),
        ([True, False], "indices must be a list of integers, got torch.bool"),
        (3, r"indices must be a list of integers, got torch.int64 \(\)"),
    ],
)
def test_batch_refuses_indices(indices, message):
    with pytest.raises(ValueError, match=message):
        batch(pool(), indices)


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), (), "images of 'x' must be uint8 .*got torch.float32"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), (), "images of 'x' must be uint8"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0.0, 1.0]), (), "labels of 'x' must be int64"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), (), r"labels of 'x' must be int64 \(2,\)"),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.tensor([0, 2]),
            (),
            r"label 2 of image 1 of 'x' is not in 0\.\.1",
        ),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([-1, 0]), (), "label -1 of image 0 of 'x'"),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.tensor([0, 1]),
            ("a",),
            "class_names of 'x' has 1 names for classes=2",
        ),
    ],
)
def test_images_refuse(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        Images(images, labels, 2, "x", names)


def test_splits_agree_or_refuse():
    splits = Splits(pool(), pool(3), pool(4), "name", "remark")
    assert (splits.image_shape, splits.classes, splits.class_names) == ((1, 2, 3), 3, ("0", "1", "2"))
    with pytest.raises(ValueError, match=r"test images of 'name' have shape \(1, 2, 2\), train has \(1, 2, 3\)"):
        Splits(pool(), pool(3), pool(4, (1, 2, 2)), "name")
    with pytest.raises(ValueError, match=r"classes of validation are .*'c'.* use the same"):
        Splits(pool(), pool(class_names=("a", "b", "c")), pool(), "name")


PIXELS, CLASSES = torch.zeros(6, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS.permute(0, 2, 3, 1), r"got torch.uint8 \(6, 16, 16, 3\), channels last: images.permute\(0, 3, 1, 2\)"),
        (PIXELS.numpy(), r"must be a uint8 tensor \(N, C, H, W\), got a ndarray: torch.as_tensor"),
        (PIXELS[:, 0], r"images\[:, None\] of grey images"),
        (PIXELS.float(), r"got torch.float32 .*: \(255 \* images\).round\(\).to\(torch.uint8\)"),
        (PIXELS.float() + 99, r"of values 0 to 255, images.to\(torch.uint8\)"),
        (PIXELS.long() + 99, r"got torch.int64 .*: of values 0 to 255, images.to\(torch.uint8\)"),
    ],
)
def test_pixels_say_what_to_type(images, message):
    with pytest.raises(ValueError, match=message):
        Images(images, CLASSES, 3, "x")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (CLASSES.tolist(), r"must be an int64 tensor \(6,\), got a list: of integers, torch.as_tensor\(labels\)"),
        (CLASSES.numpy(), "got a ndarray"),
        (["a", "b"] * 3, "of names, their places in class_names"),
        (torch.eye(3)[CLASSES], r"got torch.float32 \(6, 3\): labels.argmax\(1\) of one-hot rows"),
        (CLASSES.float(), r"got torch.float32 \(6,\): labels.long\(\)"),
        (CLASSES - 1, "label -1 of image 0"),
        (CLASSES + 1, "label 3 of image 2"),
    ],
)
def test_labels_say_what_to_type(labels, message):
    with pytest.raises(ValueError, match=message):
        Images(PIXELS, labels, 3, "x")


def test_channels_last_and_arrays_are_not_cropped():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"x has shape \(6, 16, 16, 3\), channels last"):
        crop_and_flip(PIXELS.permute(0, 2, 3, 1), generator=generator)
    with pytest.raises(ValueError, match="x is a ndarray: pass a tensor"):
        crop_and_flip(PIXELS.numpy(), generator=generator)  # pyright: ignore[reportArgumentType]
    assert crop_and_flip(PIXELS, generator=generator).shape == PIXELS.shape
