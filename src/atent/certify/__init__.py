"""Certificates: what can be certified about a classifier within a threat."""

from atent.certify.bounds import METHODS, bounds, margins, verified
from atent.certify.certificate import Certificate, Draws, certify_run, merge
from atent.certify.certifiers import CERTIFIERS, certifier, smooths, verified_by
from atent.certify.graph import Graph, read
from atent.certify.smoothing import ABSTAIN, Smoothed, draws_needed, largest_radius, linf_radius

__all__ = [
    "ABSTAIN", "CERTIFIERS", "METHODS", "Certificate", "Draws", "Graph", "Smoothed", "bounds", "certifier",
    "certify_run", "draws_needed", "largest_radius", "linf_radius", "margins", "merge", "read", "smooths",
    "verified", "verified_by",
]  # fmt: skip
