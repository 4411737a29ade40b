"""What each part of a recipe brings: the recipe, the one it grew from, and both with one part more or less, compared.

    python benchmarks/ablation.py digits-linf-atent digits-linf-atent-plus --seeds 3 --jobs 2 --name digits-linf-plus

The parts are the settings in which the two recipes differ; the fields of an average are one part. Recipes are written
into --recipes, each equal to one of the two but for one part, and `atent compare` trains them; every option that is not
known here is handed to it. ``--also method.label_smoothing=0.1`` (again and again) tries a part that neither has, on
top of the larger recipe. What is trained stays: the same command goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

from atent.cli import main
from atent.config import read_recipe
from atent.run import write_atomic

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


def variants(names: tuple[str, str], small: Tables, large: Tables, also: list[str]) -> dict[str, Tables]:
    """Recipes by name, each only once; ``also`` are texts KEY=VALUE, on top of the larger."""
    made = {names[0]: small}
    differ = parts(small, large)
    made |= {f"{names[0]}-with-{part}": taking(small, large, keys) for part, keys in differ.items()}
    made |= {f"{names[1]}-without-{part}": taking(large, small, keys) for part, keys in differ.items()}
    made[names[1]] = large
    for text in also:
        path, _, value = text.partition("=")
        section, _, key = path.partition(".")
        try:
            known = json.loads(value)
        except json.JSONDecodeError:
            known = value
        name = f"{names[1]}-with-{key}-{value}".replace("/", "-").replace(" ", "")
        made[name] = taking(large, {section: {key: known}}, [(section, key)])
    once: dict[str, Tables] = {}
    for name, tables in made.items():
        plain = {k: v for k, v in tables.items() if isinstance(v, dict)}
        if name == names[1]:
            # with one part, or two, the last recipes are among the first
            once = {k: v for k, v in once.items() if v != plain}
        if plain not in once.values():
            once[name] = plain
    return once


def toml(tables: Tables) -> str:
    """Tables of plain values as TOML; what is in a section's value is written inline."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{k} = {text(v)}" for k, v in value.items()) + " }"
        return json.dumps(value)

    lines = []
    for section, values in tables.items():
        lines += [f"[{section}]", *(f"{k} = {text(v)}" for k, v in values.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("small", help="the recipe that the other grew from")
    parser.add_argument("large", help="the recipe whose parts are taken away")
    parser.add_argument("--recipes", type=Path, default=Path("runs/ablation"), help="folder for the recipes")
    parser.add_argument("--also", action="append", default=[], metavar="KEY=VALUE", help="another part to try")
    given, rest = parser.parse_known_args()
    made = variants((given.small, given.large), read_recipe(given.small), read_recipe(given.large), given.also)
    given.recipes.mkdir(parents=True, exist_ok=True)
    paths = [given.recipes / f"{name}.toml" for name in made]
    for path, tables in zip(paths, made.values(), strict=True):
        write_atomic(path, toml(tables))
    sys.exit(main(["compare", *map(str, paths), *rest]))
