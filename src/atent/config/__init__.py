"""From a recipe and the command line to the plain settings that the rooms define.

Recipes are TOML. Their values are checked by pydantic against the rooms' dataclasses; the command line is made by
tyro from the same dataclasses, with the recipe's values as defaults. Nothing here imports torch until a job is built.
"""

from atent.config.judging import (
    AttackOptions,
    CertifyOptions,
    EvaluateOptions,
    SubjectOptions,
    parse_attack,
    parse_certify,
    parse_evaluate,
)
from atent.config.recipes import SECTIONS, UsageError, chains, job, python_job, read_recipe, recipe_names, resumed_job
from atent.config.results import (
    ReportOptions,
    ReproduceOptions,
    TheoryOptions,
    parse_report,
    parse_reproduce,
    parse_theory,
)
from atent.config.training import CompareOptions, ResumeOptions, TrainOptions, parse_compare, parse_train
from atent.config.words import seconds

__all__ = [
    "SECTIONS",
    "AttackOptions",
    "CertifyOptions",
    "CompareOptions",
    "EvaluateOptions",
    "ReportOptions",
    "ReproduceOptions",
    "ResumeOptions",
    "SubjectOptions",
    "TheoryOptions",
    "TrainOptions",
    "UsageError",
    "chains",
    "job",
    "parse_attack",
    "parse_certify",
    "parse_compare",
    "parse_evaluate",
    "parse_report",
    "parse_reproduce",
    "parse_theory",
    "parse_train",
    "python_job",
    "read_recipe",
    "recipe_names",
    "resumed_job",
    "seconds",
]
