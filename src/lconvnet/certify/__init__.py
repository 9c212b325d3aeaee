"""Certified radii of single images and certified accuracy of a set."""

from lconvnet.certify.accuracy import certified_accuracy
from lconvnet.certify.certificates import Certificates, certify
from lconvnet.certify.linear import certified_at, linear_margins

__all__ = ["Certificates", "certified_accuracy", "certified_at", "certify", "linear_margins"]
