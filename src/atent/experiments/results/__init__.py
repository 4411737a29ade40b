"""The result files as types: what evaluation.json, certificate.json, comparison.json, sweep.json, theory.json,
transfer.json and bench.json hold.

`from_json` takes a file of the current version; `atent.experiments.migrate` brings older files to it first. An unknown
key is an error, so that no part of a file is dropped silently.
"""

from atent.experiments.results.base import Adversary, EvaluatedSamples, Result, Samples, Share
from atent.experiments.results.bench import BENCH_VERSION, BenchFile
from atent.experiments.results.certificate import (
    CERTIFICATE_VERSION,
    CERTIFIED_VERSION,
    BoundsFile,
    CertificateFile,
    CertifiedEntry,
    CertifiedRow,
    CertifiedTable,
    SequentialFile,
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
from atent.experiments.results.studies import (
    TRANSFER_VERSION,
    BandReport,
    CorruptionReport,
    FlipReport,
    FourierReport,
    Mean,
    TransferFile,
)
from atent.experiments.results.sweep import SWEEP_VERSION, SweepFile, TrialResult, TrialSeed
from atent.experiments.results.theory import THEORY_VERSION, Statement, TheoryFile
from atent.experiments.results.union import UnionReport

__all__ = [
    "BENCH_VERSION",
    "CERTIFICATE_VERSION",
    "CERTIFIED_VERSION",
    "COMPARISON_VERSION",
    "EVALUATION_VERSION",
    "SWEEP_VERSION",
    "THEORY_VERSION",
    "TRANSFER_VERSION",
    "Adversary",
    "AttackResult",
    "BandReport",
    "BenchFile",
    "BoundsFile",
    "CertificateFile",
    "CertifiedEntry",
    "CertifiedRow",
    "CertifiedTable",
    "ComparisonFile",
    "CorruptionReport",
    "Difference",
    "EvaluatedSamples",
    "EvaluationFile",
    "FlipReport",
    "FourierReport",
    "LastEpoch",
    "Mean",
    "PairResult",
    "Part",
    "RecipeResult",
    "Result",
    "Samples",
    "SeedResult",
    "SequentialFile",
    "Share",
    "SmoothingFile",
    "Spread",
    "Statement",
    "SweepFile",
    "TheoryFile",
    "TransferFile",
    "TrialResult",
    "TrialSeed",
    "UnionReport",
]
