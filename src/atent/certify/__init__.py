"""Certificates of a classifier within a threat: randomised smoothing and bounds."""

from typing import Any

from atent.certify.bounds import METHODS, bounds, margins, verified
from atent.certify.certificate import certify_run, merge
from atent.certify.certifiers import CERTIFIERS, certifier, smooths, verified_by
from atent.certify.graph import Graph, read
from atent.certify.limits import largest_radius, linf_radius, samples_needed
from atent.certify.sequential import CertifiedAt
from atent.certify.smoothing import ABSTAIN, Smoothed
from atent.certify.summary import Certificate, Sampling
from atent.messages import deprecated

__all__ = [
    "ABSTAIN",
    "CERTIFIERS",
    "METHODS",
    "Certificate",
    "CertifiedAt",
    "Graph",
    "Sampling",
    "Smoothed",
    "bounds",
    "certifier",
    "certify_run",
    "largest_radius",
    "linf_radius",
    "margins",
    "merge",
    "read",
    "samples_needed",
    "smooths",
    "verified",
    "verified_by",
]  # fmt: skip

_FORMER = {"Draws": "Sampling", "draws_needed": "samples_needed"}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        deprecated(f"atent.certify.{name}", f"atent.certify.{_FORMER[name]}")
        return globals()[_FORMER[name]]
    raise AttributeError(f"module 'atent.certify' has no attribute {name!r}")
