"""The effect of each part of a recipe: compares two recipes, and each with one part added or removed.

    python benchmarks/ablation.py digits-linf-atent digits-linf-atent-plus --seeds 3 --jobs 2 --name digits-linf-plus

The parts are the settings in which the two recipes differ; the fields of an average are one part. Recipes are written
into --recipes, each equal to one of the two except for one part, and `atent compare` trains them; unknown options are
passed to it. ``--also method.label_smoothing=0.1`` (repeatable) adds a part that neither has to the larger recipe;
``--both train.batch_size=32`` sets a value in both recipes first, so that it is not a part. Finished trainings are
kept: repeating the command resumes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atent.cli import main
from atent.experiments import migrate
from atent.experiments.comparison import measure
from atent.experiments.recipe_files import as_toml, read_recipe
from atent.experiments.results import ComparisonFile, Spread
from atent.markdown import table as markdown_table
from atent.messages import deprecated
from atent.runs import write_atomic, write_json

Tables = dict[str, Any]


def parts(small: Tables, large: Tables) -> dict[str, list[tuple[str, str]]]:
    """The settings (section, key) in which two recipes differ, by the name of the part."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in dict.fromkeys([*small, *large]):
        one, two = small.get(section, {}), large.get(section, {})
        if isinstance(one, dict) and isinstance(two, dict):
            for key in dict.fromkeys([*one, *two]):
                if one.get(key) != two.get(key):
                    name = "average" if key.startswith("average") else key
                    found.setdefault(name, []).append((section, key))
    return found


def taking(to: Tables, source: Tables, settings: list[tuple[str, str]]) -> Tables:
    """``to`` with these settings as ``source`` has them."""
    made = copy.deepcopy(to)
    for section, key in settings:
        if key in source.get(section, {}):
            made.setdefault(section, {})[key] = source[section][key]
        else:
            made[section].pop(key, None)
    return made


def setting(text: str) -> tuple[str, str, Any]:
    """Section, key and value of ``section.key=value``; a value that is no JSON is a word."""
    path, _, value = text.partition("=")
    if path == "method.awp":
        deprecated(path, "train.awp")
        path = "train.awp"
    section, _, key = path.partition(".")
    try:
        return section, key, json.loads(value)
    except json.JSONDecodeError:
        return section, key, value


def having(tables: Tables, text: str) -> Tables:
    """The tables with the setting in ``text``."""
    section, key, value = setting(text)
    return taking(tables, {section: {key: value}}, [(section, key)])


def variants(
    names: tuple[str, str], small: Tables, large: Tables, also: list[str], both: Sequence[str] = ()
) -> dict[str, Tables]:
    """Recipes by name, each only once; ``also`` are texts KEY=VALUE, on top of the larger, ``both`` those for all."""
    for text in both:
        small, large = having(small, text), having(large, text)
    made = {names[0]: small}
    differ = parts(small, large)
    made |= {f"{names[0]}-with-{part}": taking(small, large, keys) for part, keys in differ.items()}
    made |= {f"{names[1]}-without-{part}": taking(large, small, keys) for part, keys in differ.items()}
    made[names[1]] = large
    for text in also:
        _, key, value = setting(text)
        entry = "" if isinstance(value, dict) else f"-{text.partition('=')[2]}".replace("/", "-").replace(" ", "")
        made[f"{names[1]}-with-{key}{entry}"] = having(large, text)
    once: dict[str, Tables] = {}
    for name, tables in made.items():
        plain = {k: v for k, v in tables.items() if isinstance(v, dict)}
        if name == names[1]:
            # with one part, or two, the last recipes are among the first
            once = {k: v for k, v in once.items() if v != plain}
        if plain not in once.values():
            once[name] = plain
    return once


@dataclass(frozen=True)
class Effect:
    """The effect of one part: the network with it minus (for seconds: divided by) the network without it."""

    part: str
    to: str
    """The recipe that it is added to."""
    clean: Spread
    worst: Spread
    seconds: Spread


def effects(found: ComparisonFile, names: tuple[str, str]) -> list[Effect]:
    """The effect of each part: the accuracy of the network with the part minus that of the one without it, paired by
    seed, clean and under the worst case of the attacks. The last one is all parts together: the larger recipe minus the
    smaller."""
    small, large = names
    rows = {row.recipe: row.seeds for row in found.rows}

    def effect(part: str, to: str, having: str, lacking: str) -> Effect:
        pairs = list(zip(rows[having], rows[lacking], strict=True))
        # Differences that agree over the seeds are known to one image at best.
        one = 1 / pairs[0][0].clean.n
        clean = measure([a.clean.value - b.clean.value for a, b in pairs], resolution=one)
        worst = measure([a.worst.value - b.worst.value for a, b in pairs], resolution=one)
        return Effect(part, to, clean, worst, measure([a.seconds_per_epoch / b.seconds_per_epoch for a, b in pairs]))

    out = []
    for recipe in rows:
        if recipe.startswith(f"{small}-with-"):
            out.append(effect(recipe.removeprefix(f"{small}-with-"), small, recipe, small))
        elif recipe.startswith(f"{large}-without-"):
            part = recipe.removeprefix(f"{large}-without-")
            out.append(effect(part, f"{large}, without it", large, recipe))
        elif recipe.startswith(f"{large}-with-"):
            out.append(effect(recipe.removeprefix(f"{large}-with-"), large, recipe, large))
    return [*out, effect("all of them", small, large, small)]


def table(found: ComparisonFile, names: tuple[str, str]) -> str:
    """The effects as Markdown: points of accuracy, and how many times the time of an epoch."""

    def points(cell: Spread) -> str:
        if cell.sd is None or cell.low is None or cell.high is None:
            return f"{100 * cell.mean:+.1f}"
        return f"{100 * cell.mean:+.1f} \u00b1 {100 * cell.sd:.1f} [{100 * cell.low:+.1f}, {100 * cell.high:+.1f}]"

    attacks = ", ".join(found.rows[0].attacks)
    rows = []
    for each in effects(found, names):
        rows.append([each.part, each.to, points(each.clean), points(each.worst), f"{each.seconds.mean:.2f} times"])
    heads = ["part", "added to", "clean (points)", "robust (points)", "time of an epoch"]
    lines = markdown_table(heads, rows, left=2)
    data, seeds = found.data, len(found.seeds)
    lines += [
        "",
        f"Robust: the worst of {attacks}, {', '.join(found.threats)}, {data.name}, test images:"
        f" {data.text}; {seeds} seed{'s' if seeds > 1 else ''}. Mean \u00b1 standard deviation of the differences"
        " between networks of one seed, and in brackets their 95 % t-interval over the seeds: the images are the same"
        " on both sides, so that the interval does not cover other images. A deviation below one image counts as one.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("small", help="the smaller recipe")
    parser.add_argument("large", help="the larger recipe")
    parser.add_argument("--recipes", type=Path, default=Path("runs/ablation"), help="folder for the recipes")
    parser.add_argument("--also", action="append", default=[], metavar="KEY=VALUE", help="another part to try")
    parser.add_argument("--name", required=True, help="the result folder, as of `atent compare`")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that holds it")
    parser.add_argument("--both", action="append", default=[], metavar="KEY=VALUE", help="set in both recipes first")
    given, rest = parser.parse_known_args()
    names = (given.small, given.large)
    made = variants(names, read_recipe(names[0]), read_recipe(names[1]), given.also, given.both)
    given.recipes.mkdir(parents=True, exist_ok=True)
    paths = [given.recipes / f"{name}.toml" for name in made]
    for path, tables in zip(paths, made.values(), strict=True):
        write_atomic(path, as_toml(tables))
    code = main(["compare", *map(str, paths), "--name", given.name, "--runs", str(given.runs), *rest])
    place = given.runs / given.name
    if code == 0:
        found = migrate.read(place / "comparison.json", ComparisonFile)
        write_json(place / "ablation.json", {"effects": [asdict(each) for each in effects(found, names)]})
        write_atomic(place / "ablation.md", table(found, names))
        print(table(found, names))
    sys.exit(code)
