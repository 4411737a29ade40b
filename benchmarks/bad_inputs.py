"""Tries tens of thousands of invalid inputs: `python benchmarks/bad_inputs.py` counts the outcomes.

An input is refused if it raises a ValueError of one short line that names the mistake, and accepted if it works:
settings are of the type of their fields, attacks stay within the threat, methods descend, recipes give a job. Anything
else is a failure and is listed. The counts go to results/reliability/bad_inputs.json, by room.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import Threat
from atent.checks import plain
from atent.testing.bad_inputs import ODD, Verdict, settings_tried, tried
from atent.testing.networks import inputs, network

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "reliability" / "bad_inputs.json"

Case = tuple[str, Verdict]
THREATS = {
    "linf": Threat("linf", 0.1), "l2": Threat("l2", 0.5), "l1": Threat("l1", 2.0), "l0": Threat("l0", 3),
    "patch": Threat("patch", 1, side=2),
}  # fmt: skip
# A search, or a training's adversary, of more passes is not run: its settings are tried alone.
_PASSES = 250


def _batch() -> tuple[nn.Module, Tensor, Tensor]:
    model = network(batch_norm=False).float()
    x = inputs(3).float()
    return model, x, model(x).argmax(1)


def _named(where: str, cases: Iterator[tuple[str, str, Verdict]]) -> Iterator[Case]:
    return ((f"{where}({field}={what})", verdict) for field, what, verdict in cases)


def settings() -> Iterator[Case]:
    """Every dataclass of settings but attacks and methods, and the threats."""
    from atent.certify import Smoothed
    from atent.certify.certificate import Sampling
    from atent.data import DataSettings
    from atent.data.views import Views
    from atent.experiments.studies import Studies
    from atent.experiments.target import EvaluateSettings
    from atent.methods.awp import Perturbation
    from atent.methods.embedding import EmbeddingTerm
    from atent.models import ModelSettings
    from atent.optim import Optimizer, Schedule
    from atent.optim.settings import Walk
    from atent.train.settings import TrainSettings

    for cls in (
        TrainSettings, DataSettings, ModelSettings, Optimizer, Walk, Schedule, EvaluateSettings, Studies, Perturbation,
        EmbeddingTerm, Views,
    ):  # fmt: skip
        yield from _named(cls.__name__, settings_tried(cls, {}))
    yield from _named("Sampling", settings_tried(Sampling, {"sigma": 0.5}))
    yield from _named("Smoothed", settings_tried(Smoothed, {"model": nn.Flatten(), "sigma": 0.25}))


def threats() -> Iterator[Case]:
    """Threats in every norm; what is accepted is asked for its ball in images."""

    def works(threat: Threat) -> None:
        if isinstance(threat.eps, tuple):
            return
        threat.check_eps((1, 6, 6))
        x = inputs(2).float()
        if torch.isnan(threat.project(threat.clamp(x) * 0.5, threat.clamp(x))).any():
            raise TypeError("a projection is NaN")

    for norm, threat in THREATS.items():
        yield from _named(norm, settings_tried(Threat, threat.plain(), works=works))
    linf = Threat("patch", 1, side=2, inner="linf", inner_eps=0.1)
    yield from _named("patch linf", settings_tried(Threat, linf.plain(), works=works))


def attacks() -> Iterator[Case]:
    """Every attack in every norm that it takes; what is accepted and short is run."""
    from atent.attacks import ATTACKS

    model, x, y = _batch()

    def works(attack: Any) -> None:
        if attack.passes > _PASSES or isinstance(getattr(attack, "source", None), str):
            return
        found = attack.run(model, x, y)
        if not torch.isfinite(found.x_adv).all() or not bool(attack.threat.contains(found.x_adv, x).all()):
            raise TypeError("the result is outside the threat")

    for name, cls in ATTACKS.items():
        for norm in cls.norms:
            good: dict[str, Any] = {"threat": THREATS[norm], **_short(cls)}
            if name == "Transfer":
                good["source"] = network(batch_norm=False, seed=4).float()
            yield from _named(f"{name} {norm}", settings_tried(cls, good, works=works))


def _short(cls: Any) -> dict[str, Any]:
    """Settings with which a search takes a moment."""
    names = {f.name for f in dataclasses.fields(cls)}
    short = {"steps": 3, "search_steps": 1, "rounds": 1, "final_steps": 2, "queries": 20, "targets": 2, "samples": 2}
    if cls.__name__ == "SAPF":
        short["steps"] = 2
    if cls.__name__ == "ALMA":
        short.pop("steps")
    return {name: value for name, value in short.items() if name in names}


def methods() -> Iterator[Case]:
    """Every method in every norm that it takes; what is accepted and short makes one step."""
    from atent.methods import METHODS, PGDAT

    model, x, y = _batch()

    def works(method: Any) -> None:
        if not method.labelled or getattr(method, "teacher", None) or max(map(_count, _values(method))) > 30:
            return
        twin = copy.deepcopy(model).train()
        state = method.init(len(x), tuple(x.shape[1:]), torch.device("cpu"))
        rng = torch.Generator().manual_seed(0)
        method.backward(twin, x, y, rng=rng, ids=torch.arange(len(x)), progress=0.5, state=state)

    for name, cls in METHODS.items():
        fields = {f.name: f for f in dataclasses.fields(cls)}
        extra: dict[str, Any] = {"teacher": "runs/none"} if "teacher" in fields else {}
        extra |= {name: 2 for name in ("steps", "samples", "noise_samples") if name in fields}
        if "method" in fields:
            extra["method"] = PGDAT(THREATS["linf"], steps=2)
        for norm in cls.norms if "threat" in fields else ("",):
            good = extra | ({"threat": THREATS[norm]} if norm else {})
            yield from _named(f"{name} {norm}".strip(), settings_tried(cls, good, works=works))


def _values(method: Any) -> list[Any]:
    """How much a step of the method takes."""
    names = [f.name for f in dataclasses.fields(method) if f.name.endswith(("steps", "samples", "replays", "chains"))]
    return [getattr(method, name) for name in names] or [0]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def calls() -> Iterator[Case]:
    """The arguments of certificates, bounds and evaluations."""
    from atent.attacks import FGSM
    from atent.certify import Smoothed, bounds, verified
    from atent.evaluate import evaluate, fourier_map, masking_checks, measure_bands, predict

    model, x, y = _batch()
    threat, fgsm, smoothed = THREATS["linf"], FGSM(THREATS["linf"]), Smoothed(model, 0.5)
    made: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
        "bounds": (partial(bounds, model, x, threat), ("method", "chunk")),
        "bounds of": (partial(bounds, model, x), ("threat",)),
        "verified": (partial(verified, model, x, y, threat), ("method", "chunk")),
        "certify": (partial(smoothed.certify, x, n0=10, n=100), ("seed", "ids", "batch", "radius")),
        "certify choosing": (partial(smoothed.certify, x, n=200), ("n0",)),
        "certify with": (partial(smoothed.certify, x, n0=10), ("n", "alpha")),
        "evaluate": (partial(evaluate, model, x, y, [fgsm]), ("seed", "ids", "batch", "cascade", "search_dtype")),
        "evaluate by": (partial(evaluate, model, x, y), ("attacks",)),
        "bands": (partial(measure_bands, model, x, y, fgsm), ("cut", "seed", "batch")),
        "fourier": (partial(fourier_map, model, x, y), ("eps", "box", "seed", "batch")),
        "masking": (partial(masking_checks, model, x, y), ("threat",)),
        "attack": (partial(fgsm, model, x, y), ("seed", "ids", "mode")),
        "predict": (partial(predict, model, x, y), ("batch",)),
    }
    for where, (call, names) in made.items():
        for name in names:
            for what, value in ODD.items():
                if where.startswith("certify") and _count(plain(value)) > 10_000:
                    continue  # right, and long
                yield f"{where}({name}={what})", tried(partial(_quietly, call, **{name: value}))


def _quietly(call: Callable[..., Any], *args: Any, **given: Any) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return call(*args, **given)


# What recipes and command lines are tried with: the recipe and its sections, without the method's name.
_RECIPES = ("digits-linf-atent", "digits-l2-smoothadv")


def recipes() -> Iterator[Case]:
    """Each field of recipes given each value that TOML has, and some that none has."""
    from atent.experiments.recipe_files import SECTIONS, as_toml, read_recipe
    from atent.experiments.recipes import job

    # Of more digits than 4,300 Python reads no number, and so no file has one.
    values = {k: v for k, v in ODD.items() if type(v) in (float, bool, str) or (type(v) is int and abs(v) < 10**4000)}
    values |= {
        "a list": [1, 2],
        "an empty list": [],
        "a table": {"a": 1},
        "lists in lists": [[[1]]],
        "long": "x" * 9999,
    }
    for recipe in _RECIPES:
        tables = read_recipe(recipe)
        paths = [(s, key) for s in SECTIONS for key in job(tables, recipe).sections()[s]]
        for section, key in paths:
            for what, value in values.items():
                changed = {**tables, section: {**tables.get(section, {}), key: value}}
                call = partial(_lines, partial(job, changed, recipe))
                yield f"{recipe} {section}.{key} = {what}", tried(call, key, section)
        for section in SECTIONS:
            for what, value in values.items():
                yield f"{recipe} {section} = {what}", tried(partial(_quietly, job, {**tables, section: value}, recipe))
    text = as_toml(read_recipe(_RECIPES[0]))
    yield from _texts(text, 400)


def _texts(text: str, n: int) -> Iterator[Case]:
    """A recipe's file with bytes changed, cut out and doubled."""
    from atent.experiments.recipe_files import read_recipe
    from atent.experiments.recipes import job

    chance = random.Random(0)
    place = ROOT / ".bad-input.toml"
    try:
        for number in range(n):
            content = bytearray(text.encode())
            for _ in range(chance.randint(1, 4)):
                at, length = chance.randrange(len(content)), chance.randint(0, 8)
                content[at : at + length] = chance.choice([b"", chance.randbytes(3), b"[[", b'"', b"=", b"\n", b"nan"])
            place.write_bytes(bytes(content))
            yield f"a file, {number}", tried(lambda: _lines(partial(job, read_recipe(str(place)), "x")))
    finally:
        place.unlink(missing_ok=True)


def _lines(call: Callable[[], Any]) -> Any:
    """The call, with the first line of an error that has one for each mistake."""
    try:
        return _quietly(call)
    except ValueError as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else "") from error


WORDS = (
    "", "x", "-1", "0", "1", "1e308", "-1e308", "inf", "nan", "9" * 30, "9" * 5000, "1/0", "8/255", "true", "none",
    "a\nb", "../x", "[1]", "1,2", "{}", "\ud800", "-", "--", "=", "1 2", "nowhere:x", "os:getcwd",
)  # fmt: skip


def command_line() -> Iterator[Case]:
    """Each option of `train` given odd words, and the options of the other commands."""
    from atent.cli import COMMANDS, command
    from atent.cli.jobs import recipe_job
    from atent.cli.parse import read
    from atent.cli.words import options_of
    from atent.experiments.recipe_files import SECTIONS, read_recipe
    from atent.experiments.recipes import job

    for recipe in _RECIPES[:1]:
        made = job(read_recipe(recipe), recipe)
        options = {o for s in SECTIONS for o in options_of(type(getattr(made, s)), f"--{s}.")}
        for place, option in enumerate(sorted(options)):
            # A parser of all options takes 0.15 s to make: each option has some of the words, each word some options.
            for word in WORDS[place % 9 :: 9]:
                call = partial(recipe_job, recipe, [f"{option}={word}"], prog="atent train")
                yield f"train {recipe} {option} {word[:20]!r}", tried(partial(_lines, call))
    for name in COMMANDS:
        module = command(name)
        function = getattr(module, name, None)
        for option in sorted(options_of(function)) if callable(function) else ():
            for word in WORDS[len(option) % 3 :: 3]:
                call = partial(read, function, [f"{option}={word}"], f"atent {name}")
                yield f"{name} {option} {word[:20]!r}", tried(partial(_lines, call))


def texts() -> Iterator[Case]:
    """Attacks and threats as text: every field of every attack, and texts with letters changed."""
    from atent.attacks import ATTACKS
    from atent.attacks.several import parse_threat
    from atent.attacks.spec import parse

    odd = (
        "", "0", "-1", "1.5", "1e308", "1e999", "9" * 30, "10**9", "true", "None", "nan", "'a'", "b'a'", "[1, 2]",
        "(1,)", "{1: 2}", "{1}", "1j", "1/0", "1/3", "a-b", "a.b", "f(1)", "(" * 50 + "1" + ")" * 50,
        "-" * 500 + "1", "'\\0'", "...", "lambda: 1", "x for x in y", "__import__('os')",
    )  # fmt: skip
    for name, cls in ATTACKS.items():
        against = THREATS[cls.norms[0]]
        for field in dataclasses.fields(cls):
            for value in odd:
                text = f"{name}({field.name}={value})"
                yield text[:80], tried(partial(parse, text, against, ATTACKS))
    chance = random.Random(0)
    letters = "()[]{}=,.:'\"\\\0\n 0123456789eE+-*/abcxPGD\u00b2\u0660"
    for start, read in (
        ("PGD(steps=40, step_size=0.01, restarts=5)", partial(parse, threat=THREATS["linf"], attacks=ATTACKS)),
        ("patch 1 side 4 inner linf inner_eps 8/255", parse_threat),
        ("l0 6 group pixel", parse_threat),
    ):
        for _ in range(700):
            found = list(start)
            for _ in range(chance.randint(1, 5)):
                found[chance.randrange(len(found))] = chance.choice(letters) * chance.choice([0, 1, 1, 2, 40])
            text = "".join(found)
            yield text[:80], tried(partial(read, text))


def files() -> Iterator[Case]:
    """The fuzzers' corpora, and each file of them with bits flipped, cut and prolonged."""
    sys.path.insert(0, str(Path(__file__).parent))
    import fuzz

    chance = random.Random(0)
    for name in fuzz.TARGETS:
        for file in fuzz.corpus(name):
            content = file.read_bytes()
            for number in range(8):
                data = bytearray(content)
                if number and data:
                    for _ in range(chance.randint(1, 3)):
                        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                if number == 3:
                    data = bytearray(content[: len(content) // 2])
                if number == 4:
                    data = bytearray(content + content)
                yield f"{name} {file.name} {number}", _reader(partial(fuzz.tried, name, bytes(data)), fuzz, name, data)


def _reader(call: Callable[[], Any], fuzz: Any, name: str, data: bytearray) -> Verdict:
    try:
        call()
    except Exception as error:
        return Verdict("wrong", f"{type(error).__name__}: {error}")
    try:
        fuzz.TARGETS[name](bytes(data))
    except (ValueError, FileNotFoundError) as error:
        return Verdict("refused", str(error))
    return Verdict("accepted", "")


ROOMS: dict[str, Callable[[], Iterator[Case]]] = {
    each.__name__: each
    for each in (settings, threats, attacks, methods, calls, recipes, command_line, texts, files)
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, dict[str, int]] = {}
    for room in args.rooms or ROOMS:
        found: Counter[str] = Counter()
        for what, verdict in ROOMS[room]():
            found[verdict.kind] += 1
            if verdict.kind == "wrong":
                print(f"{room}: {what}: {verdict.says[:300]}", flush=True)
        counts[room] = {"tried": found.total(), **{kind: found[kind] for kind in ("refused", "accepted", "wrong")}}
        print(room, counts[room], flush=True)
    if not args.rooms:
        total = {key: sum(each[key] for each in counts.values()) for key in ("tried", "refused", "accepted", "wrong")}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"by": counts, "total": total}, indent=2) + "\n")
        print("total", total)
    return int(any(each["wrong"] for each in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
