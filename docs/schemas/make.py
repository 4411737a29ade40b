"""Write the JSON Schema of each result file, and of each part that has a version, beside this script:
`python docs/schemas/make.py`."""

import json
from pathlib import Path

from atent.experiments.results import (
    BandReport,
    BenchFile,
    CertificateFile,
    CertifiedTable,
    ComparisonFile,
    CorruptionReport,
    EvaluationFile,
    FlipReport,
    FourierReport,
    SweepFile,
    TheoryFile,
    TransferFile,
    UnionReport,
)

KINDS = {
    "bands": BandReport,
    "bench": BenchFile,
    "certificate": CertificateFile,
    "certified": CertifiedTable,
    "comparison": ComparisonFile,
    "corruptions": CorruptionReport,
    "evaluation": EvaluationFile,
    "flips": FlipReport,
    "fourier": FourierReport,
    "sweep": SweepFile,
    "theory": TheoryFile,
    "transfer": TransferFile,
    "union": UnionReport,
}
for name, kind in KINDS.items():
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(kind.schema(), indent=2) + "\n")
