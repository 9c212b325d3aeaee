"""Certified radii of single images and certified accuracy of a set."""

from lconvnet.certify.certificates import Certificates, certified_accuracy, certified_at, certify, linear_margins
from lconvnet.certify.certifier import Level, Reason
from lconvnet.certify.files import certificate_documents, encoded_model

__all__ = [
    "Certificates",
    "Level",
    "Reason",
    "certificate_documents",
    "certified_accuracy",
    "certified_at",
    "certify",
    "encoded_model",
    "linear_margins",
]
