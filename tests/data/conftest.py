"""Small image sets written to disk by the tests themselves."""

import io

import numpy as np
import pytest
from PIL import Image


def encoded(seed, *, size=(6, 5), mode="L", kind="PNG"):
    """Encoded random image of `size` (height, width), and its pixels (height, width[, 3])."""
    shape = size if mode == "L" else (*size, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue(), pixels


@pytest.fixture
def encode():
    return encoded


@pytest.fixture
def write_folder():
    """Write `count` images a class as root/<class>/<i>.png; returns {path: pixels}."""

    def write(root, classes=("cat", "dog"), count=10, start=0, **options):
        pixels = {}
        for number, name in enumerate(classes):
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                content, array = encoded(start + 1000 * number + i, **options)
                path = root / name / f"{i:03d}.png"
                path.write_bytes(content)
                pixels[path] = array
        return pixels

    return write


@pytest.fixture
def write_parquet():
    """Write rows (encoded bytes, label) as a parquet file in the hub's layout; `names` makes a ClassLabel."""

    def write(path, cells, labels, *, image="image", label="label", names=None):
        datasets = pytest.importorskip("datasets")
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = pa.array(
            [None if cell is None else {"bytes": cell, "path": None} for cell in cells],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
        table = pa.table({image: column, label: pa.array(labels)})
        if names is not None:
            features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
            table = table.replace_schema_metadata(features.arrow_schema.metadata)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    return write
