"""Nothing is trained on that is called a test: every spelling, layout and reader is recognised alike, or refused."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from lconvnet.data import load, read_samples
from lconvnet.data.folders import role_of, roles_of

PARTS = [
    ("Train", "Test"),
    ("TRAIN", "TEST"),
    ("training", "testing"),
    ("Training Set", "test-set"),
    ("training_set", "test_set"),
    ("train_images", "test_images"),
    ("TrainImages", "TestImages"),
    ("trainset", "testset"),
    ("train2017", "eval"),
    ("seg_train", "seg_test"),
    ("mnisttrain", "mnisttest"),
    ("cifar10-train", "cifar10-holdout"),
]


def content(images):
    return {image.numpy().tobytes() for image in images.images}


def pixels_below(pixels, *names):
    return {array.tobytes() for path, array in pixels.items() if set(names) & set(path.parts)}


def require_parts(splits, trained, tested):
    """The test images are those that are called so, and nothing else is trained on or chosen by than the others."""
    assert splits.class_names == ("cat", "dog")
    assert content(splits.test) == tested
    assert content(splits.train) | content(splits.validation) == trained
    assert len(splits.train) + len(splits.validation) == len(trained)


@pytest.mark.parametrize("names", PARTS, ids="-".join)
def test_parts_above_the_classes(tmp_path, write_folder, names):
    train, test = names
    pixels = write_folder(tmp_path / train, count=6) | write_folder(tmp_path / test, count=4, start=100)
    require_parts(load(tmp_path), pixels_below(pixels, train), pixels_below(pixels, test))


@pytest.mark.parametrize("names", PARTS, ids="-".join)
def test_parts_below_the_classes(tmp_path, write_folder, names):
    train, test = names
    pixels = {}
    for number, name in enumerate(("cat", "dog")):
        pixels |= write_folder(tmp_path / name, classes=names, count=6, start=7000 * number)
    require_parts(load(tmp_path), pixels_below(pixels, train), pixels_below(pixels, test))


@pytest.mark.parametrize("names", PARTS, ids="-".join)
def test_parts_in_the_names_of_parquet_files_and_of_their_folders(tmp_path, encode, write_parquet, names):
    made = [encode(i) for i in range(20)]
    cells, labels, arrays = [c for c, _ in made], ["cat", "dog"] * 10, [a.tobytes() for _, a in made]
    for layout in ("{}-00000-of-00001.parquet", "data/{}.parquet", "default/{}/0000.parquet", "{}/0000.parquet"):
        root = tmp_path / layout.replace("/", "_")
        write_parquet(root / layout.format(names[0]), cells[:12], labels[:12])
        write_parquet(root / layout.format(names[1]), cells[12:], labels[12:])
        require_parts(load(root), set(arrays[:12]), set(arrays[12:]))
        with pytest.raises(ValueError, match=r"holds a part called test: name the part that you mean"):
            read_samples(root)


@pytest.mark.parametrize("column", ["split", "Split", "subset"])
def test_parts_in_a_column(tmp_path, encode, write_parquet, column):
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = [encode(i) for i in range(20)]
    cells, labels, arrays = [c for c, _ in made], ["cat", "dog"] * 10, [a.tobytes() for _, a in made]
    said = ["Train"] * 12 + ["Test"] * 8
    pq.write_table(pa.table({"image": cells, "label": labels, column: said}), tmp_path / "toy.parquet")
    require_parts(load(tmp_path / "toy.parquet"), set(arrays[:12]), set(arrays[12:]))
    with pytest.raises(ValueError, match=r"toy.parquet holds a part called test"):
        read_samples(tmp_path / "toy.parquet")
    said[3] = "other"
    pq.write_table(pa.table({"image": cells, "label": labels, column: said}), tmp_path / "toy.parquet")
    with pytest.raises(ValueError, match=r"has 'other' beside train or test: correct the rows"):
        load(tmp_path / "toy.parquet")
    pq.write_table(pa.table({"image": cells, "label": labels, column: ["small"] * 20}), tmp_path / "toy.parquet")
    assert len(load(tmp_path / "toy.parquet").test) == 4  # some other column of that name


def test_a_file_and_its_rows_must_agree(tmp_path, encode):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [encode(i)[0] for i in range(4)]
    table = {"image": cells, "label": ["cat", "dog"] * 2, "split": ["train", "train", "test", "test"]}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet is called train, but has test rows"):
        load(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train.parquet").rename(tmp_path / "train/test.parquet")
    with pytest.raises(ValueError, match=r"test.parquet is called test and train at once"):
        load(tmp_path)


def test_a_folder_alone_stands_for_what_is_in_it(tmp_path, write_folder):
    pixels = {}
    for part, start in (
        ("training_set", 0),
        ("test_set", 100),
    ):  # as archives unpack
        pixels |= write_folder(tmp_path / "images" / part / part, count=6, start=start)
    require_parts(load(tmp_path), pixels_below(pixels, "training_set"), pixels_below(pixels, "test_set"))


def test_validation_has_its_names_too(tmp_path, write_folder):
    pixels = write_folder(tmp_path / "train", count=6)
    for name in ("val", "Valid", "VALIDATION", "dev", "validation_images"):
        own = write_folder(tmp_path / name, count=3, start=100)
        splits = load(tmp_path)
        assert content(splits.validation) == {array.tobytes() for array in own.values()}
        assert content(splits.train) | content(splits.test) == {array.tobytes() for array in pixels.values()}
        (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name}-{name}")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/cat", "train/dog", "Train/cat"), "has two folders of train images, one is"),
        (("train/cat", "test/cat", "testing/cat"), "has two folders of test images"),
        (("train", "car", "bus"), r"has the folder 'bus' beside train: name parts .* a class of such a name goes into"),
        (("train", "test"), "test has no class folders, so the labels are missing"),
        (("train/cat", "train/dog", "test_old/cat", "other/x"), "has the folder 'other' beside train"),
        (("pets_train/cat", "pets_test/cat", "pred"), "'pets_test', 'pets_train' seem to be parts"),
        (("pets_train/cat", "other/cat"), "pets_train seems to be a part of a data set, not a class"),
        (("pets_test/cat", "pets_test/dog"), "has test images, but no folder train"),
        (("cat/train", "cat/test", "dog"), "dog has images beside parts, here or in other classes"),
        (("cat/train", "cat/Train", "dog/train"), "two folders of one part"),
        (("cat/test", "dog/test"), "has test images, but no folder train"),
        (("cat/train", "cat/other", "dog/train"), "has the folder 'other' beside parts"),
        (("train/cat", "train/dog", "train/test"), "lies in a folder 'test', but would be one of the train images"),
        (("a/cat/x", "a/cat/deep/testing", "b/dog/x"), "lies in a folder 'testing', but would be one of the train"),
    ],
)
def test_what_may_be_a_part_or_a_class_is_refused(tmp_path, write_folder, folders, message):
    for number, folder in enumerate(folders):
        path = tmp_path / folder
        write_folder(path.parent, classes=(path.name,), count=6, start=100 * number)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_way_out_for_a_class_called_train(tmp_path, write_folder):
    write_folder(tmp_path / "train", classes=("train", "car"), count=6)
    tested = write_folder(tmp_path / "test", classes=("train", "car"), count=3, start=100)
    splits = load(tmp_path)
    assert splits.class_names == ("car", "train")
    assert content(splits.test) == {array.tobytes() for array in tested.values()}
    write_folder(tmp_path / "other", classes=("bullet train", "contest", "interval", "latest"), count=6)
    assert len(load(tmp_path / "other").class_names) == 4


def test_names():
    for word in ("contest", "latest", "detrain", "trains", "interval", "invalid", "devil", "cat", "7"):
        assert role_of(word) is None, word
    assert roles_of(["cat", "pets_test"]) == {}
    assert roles_of([]) == {}


def test_hidden_folders_are_neither_images_nor_classes(tmp_path, write_folder, encode, write_parquet):
    """Else a notebook's checkpoints double a class and put test images among the trained ones."""
    root = tmp_path / ".cache" / "pets"
    pixels = write_folder(root, count=10)
    hidden = (".ipynb_checkpoints", ".git", ".Trash-0", "__MACOSX", "@eaDir", ".a/b")
    for name in hidden:
        write_folder(root / name, count=2, start=50)
        write_folder(root / "cat" / name, count=2, start=70)
        write_parquet(root / name / "train-0.parquet", [encode(0)[0]], [0])
    (root / "cat/._000.png").write_bytes(b"a resource fork")
    (root / "cat/Thumbs.db").write_bytes(b"small pictures")
    splits = load(root)
    assert splits.class_names == ("cat", "dog")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == len(pixels)
    assert splits.note == ""
    assert len(read_samples(root)) == len(pixels)


def test_links_are_followed_once(tmp_path, write_folder):
    write_folder(tmp_path / "store", classes=("a", "b"))
    root = tmp_path / "pets"
    root.mkdir()
    for name, target in (("cat", "a"), ("dog", "b")):
        (root / name).symlink_to(tmp_path / "store" / target)
    assert load(root).class_names == ("cat", "dog")
    for target in (tmp_path / "store/a", root, tmp_path, tmp_path / "store"):
        (root / "zebra").symlink_to(target)
        with pytest.raises(ValueError, match=r"links to a folder that holds it or is read already: remove the link"):
            load(root)
        with pytest.raises(ValueError, match=r"links to a folder"):
            read_samples(root)
        (root / "zebra").unlink()
    os.mkfifo(tmp_path / "pipe")
    for target in ("nowhere", "pipe", "pets/cat/lost.png"):  # the last one leads to itself
        for link in (root / "cat/lost.png", root / "lost"):
            os.symlink(tmp_path / target, link)
            with pytest.raises(ValueError, match=rf"{link.name} is a link that leads to no file or folder"):
                load(root)
            link.unlink()


def test_images_outside_of_the_classes_are_told(tmp_path, write_folder):
    write_folder(tmp_path, count=5)
    write_folder(tmp_path, classes=(".",), count=2, start=50)
    assert load(tmp_path).note == "2 images outside of the class folders skipped"


def test_images_beside_parquet_files_are_refused(tmp_path, write_folder, encode, write_parquet):
    write_folder(tmp_path)
    write_parquet(tmp_path / "train.parquet", [encode(0)[0]], [0])
    for read in (load, read_samples):
        with pytest.raises(ValueError, match=r"holds both train.parquet and image files: name the folder of one kind"):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_applied_in_every_format(tmp_path, kind, orientation):
    """The EXIF standard says where the first row and the first column of the stored picture belong."""
    corner = np.zeros((16, 8), dtype=np.uint8)
    corner[:8, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    options = {} if kind in ("png", "tiff") else {"quality": 95}
    Image.fromarray(corner).convert("RGB").save(stream, format={"jpg": "JPEG"}.get(kind, kind), exif=exif, **options)
    (tmp_path / f"a.{kind}").write_bytes(stream.getvalue())
    image = read_samples(tmp_path)[0, 0].float()
    tall = orientation < 5
    assert image.shape == ((16, 8) if tall else (8, 16))
    height, width = image.shape
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)
    rows = slice(None, height // 2) if top else slice(height // 2, None)
    columns = slice(None, width // 2) if left else slice(width // 2, None)
    assert image[rows, columns].mean() > 225  # 255, and what lossy formats make of it
    assert image.mean() < 255 / 4 + 20


@pytest.mark.parametrize(
    "names",
    [("tr", "te"), ("fold1", "fold2"), ("learn", "check"), ("entrenamiento", "prueba"), ("x/learn", "x/check")],
    ids="-".join,
)
def test_parts_of_unknown_names_are_refused_or_recognised(tmp_path, write_folder, names):
    """Else the parts are the classes, or the test images of each class are among those trained on."""
    for layout in ("above", "below"):
        pixels = {}
        for number, (part, name) in enumerate((p, c) for p in names for c in ("cat", "dog")):
            place = tmp_path / layout / (part if layout == "above" else name)
            pixels |= write_folder(place, (name if layout == "above" else part,), count=4, start=90 * number)
        if names == ("tr", "te"):
            require_parts(load(tmp_path / layout), pixels_below(pixels, "tr"), pixels_below(pixels, "te"))
            continue
        with pytest.raises(
            ValueError, match=r"both hold folders .* and no images of their own, so either may be parts"
        ):
            load(tmp_path / layout)


@pytest.mark.parametrize("names", [("Ｔrain", "Ｔest"), ("tráin", "tést"), ("ｔｒａｉｎ", "test​")], ids="-".join)
def test_width_and_accents_do_not_hide_a_part(tmp_path, write_folder, names):
    pixels = write_folder(tmp_path / names[0], count=6) | write_folder(tmp_path / names[1], count=4, start=100)
    require_parts(load(tmp_path), pixels_below(pixels, names[0]), pixels_below(pixels, names[1]))


def test_folders_in_class_folders_that_are_no_parts(tmp_path, write_folder):
    for number, name in enumerate(("cat", "dog")):  # as in Tiny ImageNet
        write_folder(tmp_path / "one" / name, ("images",), count=6, start=7000 * number)
        write_folder(tmp_path / "own" / name, (".", "more", "most"), count=6, start=7000 * number)
        write_folder(tmp_path / "other" / name, (f"{name}1", f"{name}2"), count=6, start=7000 * number)
    for layout in ("one", "own", "other"):
        assert load(tmp_path / layout).class_names == ("cat", "dog"), layout


@pytest.mark.parametrize(
    "names", ["train_{}/test_{}", "{}-train/{}-test", "cat_val{}/cat_training{}", "Train{}/Test{}"]
)
def test_parts_in_the_names_of_images_are_refused(tmp_path, write_folder, names):
    write_folder(tmp_path, count=8)
    for path in sorted(tmp_path.glob("*/*.png")):
        number = int(path.stem)
        path.rename(path.with_stem(names.split("/")[number % 4 == 0].format(number)))
    with pytest.raises(
        ValueError, match=r"train images whose names say \w+ and \w+, such as .*: move each part into its"
    ):
        load(tmp_path)


def test_some_images_of_such_names_are_told(tmp_path, write_folder):
    write_folder(tmp_path, count=8)
    (tmp_path / "cat/001.png").rename(tmp_path / "cat/bullet train 1.png")
    assert load(tmp_path).note == ""
    for name in ("cat/002.png", "dog/003.png"):
        (tmp_path / name).rename(tmp_path / name.replace("/", "/test_"))
    assert load(tmp_path).note == "2 images to train on are called validation or test"
