"""Images for training and evaluation: named sets, a user's own folder or parquet, the embedded digits.

*Decoded once to uint8, split once, batched and augmented on tensors.* `load` is the entry point; it does not depend on
models.
"""

from lconvnet.data.loading import NAMES, load, load_labelled, read_samples
from lconvnet.data.sets import DataError, Images, Splits, batch, crop_and_flip
from lconvnet.extras import MissingExtraError

__all__ = [
    "NAMES",
    "DataError",
    "Images",
    "MissingExtraError",
    "Splits",
    "batch",
    "crop_and_flip",
    "load",
    "load_labelled",
    "read_samples",
]
