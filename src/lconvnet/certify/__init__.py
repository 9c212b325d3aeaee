"""Certified radii of single images and certified accuracy of a set."""

from lconvnet.certify.accuracy import certified_accuracy
from lconvnet.certify.certificates import Certificates, certify
from lconvnet.certify.claim import Level, Reason
from lconvnet.certify.files import documents, encoded_model
from lconvnet.certify.linear import certified_at, linear_margins

__all__ = [
    "Certificates",
    "Level",
    "Reason",
    "certified_accuracy",
    "certified_at",
    "certify",
    "documents",
    "encoded_model",
    "linear_margins",
]
