"""The result files as types: what evaluation.json, certificate.json, comparison.json and theory.json hold.

`from_json` takes a file of the current version; `atent.experiments.migrate` brings older files to it first. An unknown
key is an error, so that no part of a file is lost without notice.
"""

from atent.experiments.results.base import Adversary, EvaluatedSamples, Result, Samples, Share
from atent.experiments.results.certificate import (
    CERTIFICATE_VERSION,
    CERTIFIED_VERSION,
    BoundsFile,
    CertificateFile,
    CertifiedEntry,
    CertifiedRow,
    CertifiedTable,
    SmoothingFile,
)
from atent.experiments.results.comparison import (
    COMPARISON_VERSION,
    ComparisonFile,
    Difference,
    PairResult,
    RecipeResult,
    SeedResult,
    Spread,
)
from atent.experiments.results.evaluation import EVALUATION_VERSION, AttackResult, EvaluationFile, LastEpoch, Part
from atent.experiments.results.theory import THEORY_VERSION, Statement, TheoryFile
from atent.experiments.results.union import UnionReport

__all__ = [
    "CERTIFICATE_VERSION",
    "CERTIFIED_VERSION",
    "COMPARISON_VERSION",
    "EVALUATION_VERSION",
    "THEORY_VERSION",
    "Adversary",
    "AttackResult",
    "BoundsFile",
    "CertificateFile",
    "CertifiedEntry",
    "CertifiedRow",
    "CertifiedTable",
    "ComparisonFile",
    "Difference",
    "EvaluatedSamples",
    "EvaluationFile",
    "LastEpoch",
    "PairResult",
    "Part",
    "RecipeResult",
    "Result",
    "Samples",
    "SeedResult",
    "Share",
    "SmoothingFile",
    "Spread",
    "Statement",
    "TheoryFile",
    "UnionReport",
]
