"""The ablation's recipes: each differs from its neighbour by one part, and none comes twice."""

import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import ablation
import pytest

from atent.experiments import migrate
from atent.experiments.recipe_files import as_toml, read_recipe
from atent.experiments.recipes import job
from atent.experiments.results import ComparisonFile, Share
from atent.runs import with_present_keys

RESULTS = Path(__file__).parents[2] / "results"
SMALL, LARGE = "digits-linf-atent", "digits-linf-atent-plus"


def made(also=()):
    return ablation.variants((SMALL, LARGE), read_recipe(SMALL), read_recipe(LARGE), list(also))


def test_each_part_is_added_to_the_one_and_taken_from_the_other():
    found = made()
    parts = ["projection", "alpha", "awp", "average"]
    assert list(found) == [
        SMALL,
        *(f"{SMALL}-with-{p}" for p in parts),
        *(f"{LARGE}-without-{p}" for p in parts),
        LARGE,
    ]
    jobs = {name: job(tables, name) for name, tables in found.items()}
    small, large = jobs[SMALL], jobs[LARGE]
    assert jobs[f"{SMALL}-with-awp"].train == replace(small.train, awp=large.train.awp)
    assert jobs[f"{LARGE}-without-awp"].train == replace(large.train, awp=small.train.awp)
    assert jobs[f"{SMALL}-with-average"].train == replace(large.train, awp=small.train.awp)
    assert jobs[f"{LARGE}-without-average"].train == replace(small.train, awp=large.train.awp)
    assert jobs[f"{LARGE}-without-projection"].method == replace(small.method, alpha=1.0)
    assert len({str(j.sections() | {"recipe": ""}) for j in jobs.values()}) == len(jobs)


def test_with_two_parts_both_ways_are_one():
    small = {"method": {"name": "PGDAT"}, "train": {"epochs": 1}}
    large = {"method": {"name": "PGDAT", "steps": 3}, "train": {"epochs": 2}}
    found = ablation.variants(("a", "b"), small, large, [])
    assert found == {
        "a": small, "a-with-steps": large | {"train": {"epochs": 1}}, "a-with-epochs": small | {"train": {"epochs": 2}},
        "b": large,
    }  # fmt: skip
    assert ablation.variants(("a", "b"), small, small | {"train": {"epochs": 2}}, []).keys() == {"a", "b"}


@pytest.mark.parametrize(("text", "value"), [("label_smoothing=0.1", 0.1), ("outer_loss=kl", "kl")])
def test_another_part_comes_on_top(text, value):
    key = text.partition("=")[0]
    name = f"{LARGE}-with-{key}-{value}"
    assert getattr(job(made([f"method.{text}"])[name], name).method, key) == value


@pytest.mark.parametrize("section", ["train", "method"])
def test_a_part_of_several_fields_goes_by_its_key(section):
    found = made([section + '.awp={"gamma": 0.01}'])
    assert job(found[f"{LARGE}-with-awp"], "x").train.awp.gamma == 0.01


def test_what_is_set_in_both_is_no_part():
    both = ["train.batch_size=16", "method.alpha=0.5"]
    found = ablation.variants((SMALL, LARGE), read_recipe(SMALL), read_recipe(LARGE), ["method.alpha=1.0"], both)
    assert {tables["train"]["batch_size"] for tables in found.values()} == {16}
    alphas = {name: tables["method"]["alpha"] for name, tables in found.items()}
    assert alphas.pop(f"{LARGE}-with-alpha-1.0") == 1.0
    assert set(alphas.values()) == {0.5}
    assert not [name for name in found if name.endswith(("-alpha", "-batch_size"))]


def test_what_is_written_is_what_is_meant():
    for name, tables in made(["method.outer_loss=kl"]).items():
        assert tomllib.loads(as_toml(tables)) == tables, name


def test_what_a_part_brings_is_the_mean_difference_of_equal_seeds():
    """Against numbers worked out by hand; a part's removal counts as what it brought."""

    def row(recipe, clean, worst, seconds):
        seeds = [
            replace(model.seeds[0], seed=k, clean=share(a), worst=share(b), seconds_per_epoch=seconds)
            for k, (a, b) in enumerate(zip(clean, worst, strict=True))
        ]
        return replace(model, recipe=recipe, seeds=seeds)

    def share(value):
        return Share(value, 0.0, 1.0, round(200 * value), 200)

    whole = migrate.read(RESULTS / "ablation-digits-linf/comparison.json", ComparisonFile)
    model = whole.rows[0]
    rows = [
        row("a", (0.9, 0.8), (0.5, 0.4), 1.0), row("a-with-awp", (0.9, 0.9), (0.6, 0.6), 2.0),
        row("b-without-awp", (0.8, 0.8), (0.4, 0.4), 1.0), row("b", (0.9, 0.8), (0.7, 0.5), 2.0),
        row("b-with-x-1", (0.9, 0.8), (0.6, 0.5), 2.0),
    ]  # fmt: skip
    found = replace(whole, rows=rows, seeds=[0, 1])
    effects = {(e.part, e.to): e for e in ablation.effects(found, ("a", "b"))}
    assert list(effects) == [("awp", "a"), ("awp", "b, without it"), ("x-1", "b"), ("all of them", "a")]
    added = effects["awp", "a"]
    assert added.worst.mean == pytest.approx(0.15)
    assert added.worst.sd == pytest.approx(0.05 * 2**0.5)
    assert added.clean.mean == pytest.approx(0.05)
    assert added.seconds.mean == 2
    assert effects["awp", "b, without it"].worst.mean == pytest.approx(0.2)
    assert effects["x-1", "b"].worst.mean == pytest.approx(-0.05)
    # Seeds that agree know the difference to one of the 200 images: t is 12.706.
    (same,) = (e for e in effects.values() if e.part == "x-1")
    assert (same.clean.mean, same.clean.sd) == (0, 0)
    assert same.clean.high == -same.clean.low == pytest.approx(12.706 / 2**0.5 / 200, rel=1e-3)
    text = ablation.table(found, ("a", "b"))
    assert "| awp | a | +5.0 ± 7.1 [-58.5, +68.5] | +15.0 ± 7.1 [-48.5, +78.5] | 2.00 times |" in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("ablation-*/ablation.json")), ids=lambda path: path.parent.name)
def test_committed_effects_are_those_of_their_comparison(path):
    found = migrate.read(path.with_name("comparison.json"), ComparisonFile)
    kept = with_present_keys(json.loads(path.read_text()))["effects"]
    made = [asdict(each) for each in ablation.effects(found, (found.rows[0].recipe, kept[-2]["to"].partition(",")[0]))]
    for one, other in zip(made, kept, strict=True):
        assert (one["part"], one["to"]) == (other["part"], other["to"])
        for figure in ("clean", "worst", "seconds"):
            assert one[figure] == pytest.approx(other[figure], rel=1e-9, abs=1e-12)
