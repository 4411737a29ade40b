"""Write the JSON Schema of each result file beside this script: `python docs/schemas/make.py`."""

import json
from pathlib import Path

from atent.experiments.results import (
    CertificateFile,
    CertifiedTable,
    ComparisonFile,
    EvaluationFile,
    TheoryFile,
    UnionReport,
)

KINDS = {
    "evaluation": EvaluationFile,
    "certificate": CertificateFile,
    "certified": CertifiedTable,
    "comparison": ComparisonFile,
    "theory": TheoryFile,
    "union": UnionReport,
}
for name, kind in KINDS.items():
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(kind.schema(), indent=2) + "\n")
