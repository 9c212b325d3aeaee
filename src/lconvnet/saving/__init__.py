"""Baked networks on disk: one safetensors file with weights, architecture and bound, and never any code."""

from lconvnet.saving.architecture import architecture
from lconvnet.saving.files import Description, describe, encode, load, save

__all__ = ["Description", "architecture", "describe", "encode", "load", "save"]
