"""Files in the formats of the baselines' authors, written by the tests: none of theirs is needed."""

import struct

import numpy as np

TYPES = {"float32": 1, "float64": 2, "int64": 9}


def varint(value):
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def message(*fields):
    """A protocol buffer of (number, integer or bytes)."""
    parts = []
    for number, value in fields:
        if isinstance(value, bytes):
            parts.append(varint(number << 3 | 2) + varint(len(value)) + value)
        else:
            parts.append(varint(number << 3) + varint(value))
    return b"".join(parts)


def block(entries):
    """Sorted entries with shared prefixes, one restart, no compression."""
    content, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return content + struct.pack("<II", 0, 1)


def write_tensorflow(index, variables, *, per_block=3):
    """Variables as TensorFlow's Saver writes them: an index in several blocks and one file of numbers."""
    data, entries = b"", [(b"", message((1, 1), (3, message((1, 1)))))]
    for name in sorted(variables):
        values = np.asarray(variables[name], order="C")
        shape = b"".join(message((2, message((1, side)))) for side in values.shape)
        fields = [(1, TYPES[values.dtype.name]), (2, shape), (4, len(data)), (5, values.nbytes)]
        entries.append((name.encode(), message(*fields) + varint(6 << 3 | 5) + b"\0\0\0\0"))
        data += values.tobytes()
    content, handles = b"", []
    for start in range(0, len(entries), per_block):
        chunk = entries[start : start + per_block]
        handles.append((chunk[-1][0], append(content, block(chunk))))
        content += block(chunk) + bytes(5)
    meta, places = append(content, block([])), [(key, place) for key, place in handles]
    content += block([]) + bytes(5)
    directory = append(content, block(places))
    content += block(places) + bytes(5)
    footer = (meta + directory).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    index.write_bytes(content + footer)
    index.with_suffix(".data-00000-of-00001").write_bytes(data)
    return index


def append(content, new):
    """The place that a block gets at the end."""
    return varint(len(content)) + varint(len(new))
