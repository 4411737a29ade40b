"""Certificates: what can be certified about a classifier within a threat."""

from atent.certify.bounds import METHODS, bounds, margins, verified
from atent.certify.certificate import Certificate, Sampling, certify_run, merge
from atent.certify.certifiers import CERTIFIERS, certifier
from atent.certify.graph import Graph, read
from atent.certify.smoothing import ABSTAIN, Smoothed, largest_radius, linf_radius, samples_needed

__all__ = [
    "ABSTAIN", "CERTIFIERS", "METHODS", "Certificate", "Graph", "Sampling", "Smoothed", "bounds", "certifier",
    "certify_run", "largest_radius", "linf_radius", "margins", "merge", "read", "samples_needed", "verified",
]  # fmt: skip
