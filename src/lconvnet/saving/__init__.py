"""Baked networks on disk."""

from lconvnet.saving.architecture import architecture
from lconvnet.saving.files import Description, describe, encode, load, save

__all__ = ["Description", "architecture", "describe", "encode", "load", "save"]
