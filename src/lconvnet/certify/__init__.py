"""Certified radii of single images and certified accuracy of a set."""

from lconvnet.certify.accuracy import certified_accuracy
from lconvnet.certify.certificates import Certificates, certify
from lconvnet.certify.claim import Level
from lconvnet.certify.files import documents, encoded_model

__all__ = ["Certificates", "Level", "certified_accuracy", "certify", "documents", "encoded_model"]
