"""Certified radii of single images and certified accuracy of a set."""

from lconvnet.certify.accuracy import certified_accuracy
from lconvnet.certify.certificates import Certificates, certify

__all__ = ["Certificates", "certified_accuracy", "certify"]
