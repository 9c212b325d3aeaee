"""Files of a few bytes that ask for gigabytes, are not what their name says, or would start other programs."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from lconvnet import allowance
from lconvnet.data import DataError, load, read_samples
from lconvnet.data.decoding import FORMATS
from lconvnet.data.tables import pages

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def pool():
    """Counts what Arrow holds during a test."""
    before = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(before)
    pa.set_memory_pool(counted)
    yield counted
    pa.set_memory_pool(before)


def repeated(path, value, count):
    """A column in which one value stands `count` times, written once."""
    indices = pa.array(np.zeros(count, np.int32))
    column = pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.binary()))
    pq.write_table(pa.table({"image": column, "label": pa.array(np.zeros(count, np.int64))}), path, compression="zstd")
    table = pq.read_table(path)  # drop Arrow's own note that the column was one of indices
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd", store_schema=False)


@pytest.mark.parametrize("read", [load, read_samples])
def test_what_repeats_in_a_parquet_file_is_counted(tmp_path, pool, read):
    path = tmp_path / "bomb.parquet"
    repeated(path, bytes(500_000), 13_000)
    assert path.stat().st_size < 10_000, "bytes, which stand for 6.5 GB"
    start = pool.bytes_allocated()
    with pytest.raises(DataError, match=r"bomb.parquet would take .* set LCONVNET_MEMORY="):
        read(path)
    assert pool.max_memory() - start < 2 * allowance.BYTES


@pytest.mark.parametrize("read", [load, read_samples])
def test_a_column_that_is_a_dictionary_is_counted_by_its_rows(tmp_path, pool, read):
    path = tmp_path / "bomb.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(13_000, np.int32)), pa.array([bytes(500_000)]))
    pq.write_table(pa.table({"image": column, "label": pa.array(np.zeros(13_000, np.int64))}), path, compression="zstd")
    start = pool.bytes_allocated()
    with pytest.raises(DataError, match=r"bomb.parquet would take .* set LCONVNET_MEMORY="):
        read(path)
    assert pool.max_memory() - start < allowance.BYTES


def test_a_structure_is_counted_row_by_row(tmp_path, pool):
    path = tmp_path / "bomb.parquet"
    repeated(path, bytes(500_000), 13_000)
    flat = pq.ParquetFile(path).read(columns=["label"])
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(13_000, np.int32)), pa.array([bytes(500_000)]))
    nested = pa.StructArray.from_arrays([images], ["bytes"])
    pq.write_table(pa.table({"image": nested, "label": flat["label"]}), path, compression="zstd", store_schema=False)
    start = pool.bytes_allocated()
    with pytest.raises(DataError, match=r"bomb.parquet would take"):
        load(path)
    assert pool.max_memory() - start < allowance.BYTES


@pytest.mark.parametrize("column", ["x", "image"])
def test_rows_of_nothing_are_counted_before_they_are_read(tmp_path, column):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({column: pa.nulls(70_000_000)}), path, compression="zstd")
    assert path.stat().st_size < 200_000, "bytes; read row by row they took minutes"
    with pytest.raises(DataError, match=r"bomb.parquet of 70000000 rows would take 560 MB"):
        read_samples(path)


def test_numbers_that_repeat_in_a_parquet_file_are_counted(tmp_path, pool):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"x": pa.array(np.zeros(20_000_000))}), path, compression="zstd")
    assert path.stat().st_size < 100_000, "bytes, which stand for 20 million numbers"
    with pytest.raises(DataError, match=r"bomb.parquet would take"):
        read_samples(path)


def varint(number, length):
    """A zigzag varint, padded to a length."""
    number <<= 1
    return bytes((number >> 7 * i) & 127 | (128 if i < length - 1 else 0) for i in range(length))


@pytest.mark.parametrize("dictionary", [True, False])
def test_one_large_cell_is_counted_whatever_the_footer_says(tmp_path, request, monkeypatch, dictionary):
    path = tmp_path / "bomb.parquet"
    cells = pa.array([bytes(60_000_000), b"small"], pa.binary())
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), path, compression="zstd", use_dictionary=dictionary)
    group, content = pq.ParquetFile(path).metadata.row_group(0), path.read_bytes()
    for size in {group.total_byte_size, group.column(0).total_uncompressed_size}:
        length = next(n for n in range(1, 9) if size << 1 < 1 << 7 * n)
        assert varint(size, length) in content[-2000:]
        content = content[:-2000] + content[-2000:].replace(varint(size, length), varint(1000, length))
    path.write_bytes(content)
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == 1000 and len(content) < 10_000
    monkeypatch.setattr(allowance, "BYTES", 100_000_000)
    pool = request.getfixturevalue("pool")  # which counts from here
    with pytest.raises(DataError, match=r"bomb.parquet would take 360 MB"):
        load(path)
    assert pool.max_memory() < 10_000_000


def test_one_row_of_many_values_is_counted(tmp_path):
    path = tmp_path / "bomb.parquet"
    offsets = pa.array([0, 100_000_000], pa.int32())
    numbers = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(100_000_000, np.int8)))
    pq.write_table(pa.table({"x": numbers}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb.parquet would take 800 MB"):
        read_samples(path)


def test_lists_of_texts_are_refused(tmp_path):
    """A row of them may repeat a value of the file any number of times."""
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), pa.array([b"a", b"b"]))
    for column in (lists, pa.StructArray.from_arrays([lists], ["y"]), pa.ListArray.from_arrays([0, 1], lists)):
        pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match="a.parquet has 'x', a column of lists of binary: keep one value in a row"):
            read_samples(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "options", [{}, {"data_page_version": "2.0"}, {"compression": "none"}, {"use_dictionary": False}]
)
def test_headers_of_pages_say_what_an_honest_footer_says(tmp_path, options):
    """But for the headers themselves, of some fifty bytes a page, which the footer counts."""
    path = tmp_path / "honest.parquet"
    rows = np.random.default_rng(0).integers(0, 256, (3000, 40), dtype=np.uint8)
    table = pa.table(
        {"image": [row.tobytes() for row in rows], "x": [{"y": [i, i + 1], "z": str(i)} for i in range(3000)]}
    )
    pq.write_table(table, path, row_group_size=1000, data_page_size=4096, write_page_checksum=True, **options)
    metadata = pq.ParquetFile(path).metadata
    footer = sum(metadata.row_group(i).total_byte_size for i in range(3))
    assert 0.95 * footer <= sum(page.size for page in pages(path, metadata)) <= footer
    images = pages(path, metadata, ["image"])
    assert 0.9 * 3000 * 40 <= sum(page.size for page in images) <= 1.2 * 3000 * 44
    assert sum(page.values for page in images) == 3000 and sum(page.values for page in pages(path, metadata)) == 12_000


def test_an_ordinary_file_needs_no_more_room(tmp_path, encode, write_parquet, monkeypatch):
    """Images that compress well, as those of MNIST do, take less than a sixtieth of what is allowed."""
    made = [encode(i) for i in range(100)]
    write_parquet(tmp_path / "a.parquet", [content for content, _ in made], [i % 2 for i in range(100)])
    monkeypatch.setattr(allowance, "BYTES", 0)
    assert len(load(tmp_path / "a.parquet").train) == 70


def test_images_that_are_large_together_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(allowance, "BYTES", 2_000_000)
    blank = io.BytesIO()
    Image.new("RGB", (300, 300)).save(blank, "PNG")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.png").write_bytes(blank.getvalue())
    with pytest.raises(DataError, match=r"\d+ images such as .*png would take .* LCONVNET_MEMORY"):
        load(tmp_path)
    assert load(tmp_path, image_size=8).image_shape == (3, 8, 8), "of a size that the user chose"


def test_the_allowance_is_raised_where_a_file_is_trusted(monkeypatch):
    with pytest.raises(ValueError, match=r"x would take 6.5 GB of memory, more than the 537 MB .*=7GB"):
        allowance.require(6_500_000_000, 2600, "x")
    monkeypatch.setenv("LCONVNET_MEMORY", "7GB")
    allowance.require(6_500_000_000, 2600, "x")
    monkeypatch.setenv("LCONVNET_MEMORY", "much")
    with pytest.raises(ValueError, match=r"LCONVNET_MEMORY='much' is not an amount"):
        allowance.allowed(1)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_program_is_started_by_an_image(tmp_path, monkeypatch):
    """Ghostscript would be, for an EPS file of any name."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gs", "gswin64c", "wmf2eps", "convert"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    for name in ("images/a", "images/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "evil.png").write_bytes(EPS)
    pq.write_table(pa.table({"image": [EPS] * 9, "label": [0, 1] * 4 + [0]}), tmp_path / "evil.parquet")
    for read in (load, read_samples):
        for path in (tmp_path / "images", tmp_path / "evil.parquet"):
            with pytest.raises(DataError, match="is not a readable image, none of BMP, GIF, JPEG"):
                read(path)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_named_formats_are_read(tmp_path, kind):
    pixels = np.full((6, 6), 9, np.uint8)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png", kind)
    assert load(tmp_path, test=2, validation=2, channels=1).image_shape == (1, 6, 6)


def header(shape, descr="<f8"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": descr, "fortran_order": False, "shape": shape})
    return content.getvalue()


def archive(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(header((2**40, 2**20))),
        lambda path: path.write_bytes(header((2**62, 2**62))),
        lambda path: path.write_bytes(header((10**6,))),
        lambda path: path.write_bytes(header((-3,)) + bytes(64)),
        lambda path: path.write_bytes(header((3,), "|O") + bytes(64)),
        lambda path: path.write_bytes(header((3,), [("a", "<f8"), ("b", "<f8")]) + bytes(64)),
        lambda path: path.write_bytes(header((3,), "<f16") + bytes(64)),
        lambda path: path.write_bytes(header((3,), "<c16") + bytes(64)),
        lambda path: path.write_bytes(header((3,), "<U2") + bytes(64)),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{" + b"(" * 117),
        lambda path: path.write_bytes(b"\x93NUMPY\x03\x00\xff\xff\xff\xff{"),
        lambda path: path.write_bytes(b"\x93NUMPY"),
        lambda path: path.write_bytes(b"\x80\x04N."),
        lambda path: path.write_bytes(b"text"),
        lambda path: path.write_bytes(b""),
        lambda path: zipfile.ZipFile(path, "w").close(),
        archive,
    ],
)
def test_an_npy_file_that_is_not_one(tmp_path, write):
    write(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"x\.npy (is not a readable .npy file|holds .* not one array)") as error:
        read_samples(tmp_path / "x.npy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["?", "<u1", ">i2", "<u4", "<i8", "<f2", ">f4", "<f8"])
def test_numbers_are_read_as_they_are(tmp_path, dtype):
    values = np.array([[1, 0], [1, 1]], dtype)
    np.save(tmp_path / "x.npy", values)
    assert read_samples(tmp_path / "x.npy").tolist() == values.tolist()


def png_of_16_bits():
    """A 2x2 PNG of 16-bit colour, which Pillow reads but does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size, rows = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), 2 * (b"\0" + bytes(range(12)))
    chunks = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    "content",
    [png_of_16_bits(), b"P6 2 2 65535\n" + bytes(24), b"P6 2 2 256\n" + bytes(24)],
    ids=["png", "ppm", "ppm-9"],
)
def test_16_bit_colour_is_not_cut_to_8(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a.png has 16 bits a channel, not 8-bit grey or colour: convert it to 8 bits"):
        read_samples(tmp_path)
    (tmp_path / "a.png").write_bytes(b"P6 2 2 255\n" + bytes(range(12)))
    assert read_samples(tmp_path)[0].permute(1, 2, 0).flatten().tolist() == list(range(12))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_no_frame_or_page_is_left_out(tmp_path, kind):
    frames = [Image.fromarray(np.full((4, 4, 3), 90 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "a.png", format=kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"a.png has 3 frames or pages, an example is one: write each to a file of its"):
        read_samples(tmp_path)


def test_a_camera_s_second_frame_is_none(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), 90 * i, np.uint8)) for i in range(2)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_samples(tmp_path).max() == 0


def test_pillow_warns_nobody(tmp_path):
    """Here a warning is an error, which would be that of an unreadable image."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0broken")
    assert read_samples(tmp_path).shape == (1, 1, 8, 8)
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png with 13000x13000 pixels would take"):
        read_samples(tmp_path)
