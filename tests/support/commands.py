"""What the commands make of words, without running them."""

from importlib import import_module

from atent.cli.jobs import jobs_of, recipe_job
from atent.cli.parse import read
from atent.cli.words import seconds, split_sections


def given(name, *words):
    """The keywords of a command; of the options that several share, their dataclass is ``target``."""
    module = import_module(f"atent.cli.{name}")
    return read(getattr(module, name), list(words), f"atent {name}", renamed=getattr(module, "RENAMED", None))


def train_job(*words):
    """The job that `atent train` runs."""
    own, fields = split_sections(list(words))
    options = given("train", *own)
    allowed = options.get("allow_large_eps", False)
    return recipe_job(options["recipe"], fields, prog="atent train", allow_large_eps=allowed)[0]


def compare_jobs(*words):
    """The jobs that `atent compare` runs, by recipe."""
    own, fields = split_sections(list(words))
    options = given("compare", *own)
    if options["budget"]:
        fields += ["--train.minutes", str(seconds(options["budget"], "--budget") / 60)]
    return jobs_of(options["recipes"], fields, allow_large_eps=options.get("allow_large_eps", False))
