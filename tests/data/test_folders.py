import io
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lconvnet.data import load


def keys(images):
    return [image.numpy().tobytes() for image in images.images]


def test_a_folder_is_split_three_ways_and_every_pixel_and_label_survives(tmp_path, write_folder):
    pixels = write_folder(tmp_path / "pets", count=20)
    splits = load(tmp_path / "pets")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [28, 4, 8]
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[14, 14], [2, 2], [4, 4]]
    label = {array.tobytes(): ("cat", "dog").index(path.parent.name) for path, array in pixels.items()}
    found = [pair for part in parts for pair in zip(keys(part), part.labels.tolist(), strict=True)]
    assert dict(found) == label
    assert len(found) == len(label)
    assert (splits.name, splits.class_names, splits.image_shape, splits.note) == ("pets", ("cat", "dog"), (1, 6, 5), "")


def test_colour_is_channels_first(tmp_path, write_folder):
    pixels = write_folder(tmp_path, mode="RGB", count=3)
    splits = load(tmp_path, test=2, validation=2)
    expected = {array.transpose(2, 0, 1).tobytes() for array in pixels.values()}
    assert set(keys(splits.train) + keys(splits.validation) + keys(splits.test)) == expected
    assert splits.image_shape == (3, 6, 5)


def test_same_files_and_seed_give_the_same_splits_and_test_ignores_the_seed(tmp_path, write_folder):
    write_folder(tmp_path, count=30)
    first, again, other = load(tmp_path, seed=3), load(tmp_path, seed=3), load(tmp_path, seed=4)
    assert keys(first.train) == keys(again.train)
    assert keys(first.validation) == keys(again.validation)
    assert keys(first.test) == keys(other.test)
    assert set(keys(first.validation)) != set(keys(other.validation))


def test_own_test_and_validation_folders_are_kept(tmp_path, write_folder):
    train = write_folder(tmp_path / "train", count=10)
    test = write_folder(tmp_path / "test", count=4, start=100)
    splits = load(tmp_path)
    assert set(keys(splits.test)) == {array.tobytes() for array in test.values()}
    assert len(splits.validation) == 2
    validation = write_folder(tmp_path / "val", count=3, start=200)
    splits = load(tmp_path)
    assert set(keys(splits.validation)) == {array.tobytes() for array in validation.values()}
    assert set(keys(splits.train)) == {array.tobytes() for array in train.values()}
    with pytest.raises(ValueError, match=r"validation=5, but .* has validation images of its own"):
        load(tmp_path, validation=5)
    with pytest.raises(ValueError, match=r"test=5, but .* has test images of its own"):
        load(tmp_path, test=5)


def test_class_folders_that_are_numbers_keep_their_order(tmp_path, write_folder):
    write_folder(tmp_path, classes=("10", "9", "2"))
    assert load(tmp_path).class_names == ("2", "9", "10")


def test_jpeg_is_noted(tmp_path, write_folder):
    write_folder(tmp_path, count=5, size=(16, 16))
    assert load(tmp_path).note == ""
    Image.open(tmp_path / "cat/000.png").save(tmp_path / "cat/000.jpg")
    (tmp_path / "cat/readme.txt").write_text("no image")
    assert load(tmp_path).note == "JPEG-compressed pixels (1 of 11 images); 1 files without an image suffix skipped"


def test_image_size_and_channels_convert(tmp_path, write_folder):
    write_folder(tmp_path, classes=("cat",), size=(8, 8))
    write_folder(tmp_path, classes=("dog",), size=(16, 12), mode="RGB")
    splits = load(tmp_path, image_size=(4, 6), channels=3)
    assert splits.image_shape == (3, 4, 6)
    assert load(tmp_path, image_size=8, channels=1).image_shape == (1, 8, 8)


def test_image_size_leaves_fitting_images_exact_and_averages_when_shrinking(tmp_path):
    for name, value in (("a", 40), ("b", 200)):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((4 + 4 * i, 4 + 4 * i), value, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    splits = load(tmp_path, image_size=4, test=2, validation=2)
    for part in (splits.train, splits.validation, splits.test):  # constant images stay constant at any size
        assert torch.equal(part.images.flatten(1).amax(1), torch.tensor([40, 200], dtype=torch.uint8)[part.labels])
        assert torch.equal(part.images.flatten(1).amin(1), torch.tensor([40, 200], dtype=torch.uint8)[part.labels])


def test_camera_rotation_is_applied(tmp_path):
    pixels = np.zeros((16, 8), dtype=np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture must be turned clockwise by 90 degrees
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.jpg", exif=exif, quality=95)
    images = load(tmp_path, test=2, validation=2).train.images
    assert images.shape[1:] == (1, 8, 16)
    assert images[..., :8].float().mean() < 10  # the white top is on the right afterwards
    assert images[..., 8:].float().mean() > 245


def save(path, image, **options):
    stream = io.BytesIO()
    image.save(stream, format="PNG", **options)
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:60]), r"dog/003.png is not a readable image .*repair or remove it"),
        (lambda p: p.write_bytes(b""), "dog/003.png is not a readable image"),
        (lambda p: p.write_text("hello"), "dog/003.png is not a readable image"),
        (lambda p: save(p, Image.new("L", (5, 9))), r"is \d+x5, but .*\.png is \d+x5 .*pass image_size="),
        (lambda p: save(p, Image.new("RGB", (5, 6))), r"is (grey|colour), but .*pass channels=1 or channels=3"),
        (lambda p: save(p, Image.new("I;16", (5, 6))), r"dog/003.png has 16 bits a channel.*convert it to 8"),
        (lambda p: save(p, Image.new("LA", (5, 6), (9, 100))), "dog/003.png has transparent pixels: flatten"),
        (lambda p: save(p, Image.new("P", (5, 6)), transparency=0), "dog/003.png has transparent pixels: flatten"),
        (lambda p: save(p, Image.new("1", (9000, 9000))), r"dog/003.png with 9000x9000 pixels would take 972 MB"),
    ],
)
def test_a_bad_image_is_named(tmp_path, write_folder, break_it, message):
    write_folder(tmp_path)
    break_it(tmp_path / "dog/003.png")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_opaque_alpha_and_palettes_are_read(tmp_path, write_folder):
    write_folder(tmp_path, mode="RGB")
    save(tmp_path / "dog/003.png", Image.new("RGBA", (5, 6), (1, 2, 3, 255)))
    save(tmp_path / "dog/004.png", Image.new("P", (5, 6)))
    parts = load(tmp_path)
    colours = {tuple(x[:, 0, 0].tolist()) for part in (parts.train, parts.validation, parts.test) for x in part.images}
    assert {(1, 2, 3), (0, 0, 0)} < colours


def test_refuses_layouts(tmp_path, write_folder):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/image.png").write_bytes(b"")
    with pytest.raises(ValueError, match="flat has no class folders, so the labels are missing"):
        load(tmp_path / "flat")
    write_folder(tmp_path / "empty")
    (tmp_path / "empty/bird").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*bird has no images .*add some, or remove the folder"):
        load(tmp_path / "empty")
    write_folder(tmp_path / "single", classes=("cat",))
    with pytest.raises(ValueError, match="labels of the training images are all 'cat': a classifier needs two"):
        load(tmp_path / "single")
    write_folder(tmp_path / "only/test")
    with pytest.raises(ValueError, match="has test images, but no folder train"):
        load(tmp_path / "only")
    write_folder(tmp_path / "mixed/train")
    write_folder(tmp_path / "mixed", classes=("bird",))
    with pytest.raises(ValueError, match="has the folder 'bird' beside train"):
        load(tmp_path / "mixed")
    write_folder(tmp_path / "twice/train")
    write_folder(tmp_path / "twice/val")
    write_folder(tmp_path / "twice/valid")
    with pytest.raises(ValueError, match="two folders of validation images"):
        load(tmp_path / "twice")
    write_folder(tmp_path / "other/train")
    write_folder(tmp_path / "other/test", classes=("cat", "dogs"))
    with pytest.raises(ValueError, match=r"label 'dogs' of .*test/dogs/000.png is out of range.*did you mean 'dog'"):
        load(tmp_path / "other")
    write_folder(tmp_path / "tiny", count=1)
    with pytest.raises(ValueError, match="validation=1 of 1 images must be in 0..0"):
        load(tmp_path / "tiny")
    write_folder(tmp_path / "few", count=2)
    with pytest.raises(ValueError, match="has no training image left: hold out fewer"):
        load(tmp_path / "few", test=1, validation=2)


def test_test_images_must_fit_the_training_images(tmp_path, write_folder):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", size=(7, 5))
    with pytest.raises(ValueError, match=r"test/cat/000.png is 7x5, but .*train/cat/000.png is 6x5 \(height x width\)"):
        load(tmp_path)


def test_images_of_several_parts_are_told(tmp_path, write_folder):
    """By their pixels: a copy, and the same pixels in another format."""
    write_folder(tmp_path / "train", count=10)
    write_folder(tmp_path / "test", count=4, start=100)
    assert load(tmp_path).note == ""
    shutil.copy(tmp_path / "train/cat/001.png", tmp_path / "test/cat/copy.png")
    shutil.copy(tmp_path / "train/dog/002.png", tmp_path / "test/dog/copy.png")
    Image.open(tmp_path / "train/dog/003.png").save(tmp_path / "test/dog/other.bmp")
    assert load(tmp_path).note == "3 of 11 test images are in an earlier part, too"
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    assert load(tmp_path).note == (
        "20 of 20 validation images are in an earlier part, too; 3 of 11 test images are in an earlier part, too"
    )


@pytest.mark.parametrize("name", ["test/cat/also.png", "train/dog/also.png", "train/cat/also.png"])
def test_a_file_does_not_count_twice(tmp_path, write_folder, name):
    """In another part, in another class, and in its own."""
    write_folder(tmp_path / "train", count=10)
    write_folder(tmp_path / "test", count=4, start=100)
    first, second = tmp_path / "train/cat/001.png", tmp_path / name
    for link, way in ((second.symlink_to, rf"remove the link .*{name}"), (second.hardlink_to, "remove one of them")):
        link(first)
        with pytest.raises(ValueError, match=rf"are one file, which would count twice: {way}"):
            load(tmp_path)
        second.unlink()
    assert load(tmp_path).note == ""


def test_classes_that_are_not_tested_are_told(tmp_path, write_folder):
    write_folder(tmp_path / "train", ("cat", "dog", "emu"), count=10)
    write_folder(tmp_path / "test", ("cat",), count=4, start=100)
    assert load(tmp_path).note == "no test image of class 'dog', 'emu'"


@pytest.mark.parametrize("names", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("\uff43at", "cat")], ids=ascii)
def test_classes_that_look_alike_are_refused(tmp_path, write_folder, write_parquet, encode, names):
    write_folder(tmp_path / "pets", (*names, "dog"), count=4)
    with pytest.raises(ValueError, match=r"classes '.*' and '.*' differ in case or coding alone: merge or rename"):
        load(tmp_path / "pets")
    write_parquet(tmp_path / "pets.parquet", [encode(i)[0] for i in range(9)], [0, 1, 2] * 3, names=(*names, "dog"))
    with pytest.raises(ValueError, match=r"differ in case or coding alone"):
        load(tmp_path / "pets.parquet")
    for part, name, start in (("train", names[0], 0), ("test", names[1], 100)):
        write_folder(tmp_path / "parts" / part, (name, "dog"), count=4, start=start)
    with pytest.raises(ValueError, match=re.escape(f"{names[1]!a} is not {names[0]!a}: rename one")):
        load(tmp_path / "parts")


def test_names_that_are_not_text_are_refused_before_training(tmp_path, write_folder):
    for name in (b"\xff\xfe", b"a\nb"):
        write_folder(tmp_path / "pets", ("cat", os.fsdecode(name)), count=4)
        with pytest.raises(ValueError, match=r"class '.*\\.*' is not a name of printable letters in UTF-8: rename it"):
            load(tmp_path / "pets")
        shutil.rmtree(tmp_path / "pets")
    root = tmp_path / os.fsdecode(b"pets\xff")
    write_folder(root)
    with pytest.raises(ValueError, match=r"data 'pets\\udcff' is not a name of printable letters"):
        load(root)
