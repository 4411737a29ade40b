"""Every recipe is sound, and says what the experiment's column of the paper says."""

import dataclasses
import functools
import math
import re
import tomllib
from pathlib import Path

import pytest
import torch

from atent.attacks import ATTACKS
from atent.attacks.spec import labelled, parse
from atent.data import from_tensors
from atent.experiments.pipeline import threat_of
from atent.experiments.recipes import job, read_recipe, recipe_names
from atent.methods import ATENT
from atent.models import make, native_shape
from atent.train import TrainSettings, fit


@functools.cache
def made(name):
    return job(read_recipe(name), name)


# net, norm, eps, K, eta', gamma, noise, projection, start, alpha, batch, lr, weight decay, epochs
COLUMNS = {
    "mnist-linf-atent": ("small_cnn", "linf", 0.3, 80, 0.01, 0, 1e-4, "every", "corner", 0.9, 128, 0.01, 0, 30),
    "mnist-linf-atent-reported": ("small_cnn", "linf", 0.3, 40, 0.02, 0, 1e-4, "last", "corner", 0.9, 128, 0.03, 0, 30),
    "mnist-l2-atent": ("lenet5", "l2", 2, 40, 0.125, 0.05, 1e-2, "every", "sphere", 0.9, 50, 0.01, 0, 30),
    "cifar10-linf-atent": ("wrn_34_10", "linf", 0.031, 10, 0.007, 0, 1e-3, "last", "corner", 0.9, 128, 0.1, 5e-4, 76),
    "cifar10-l2-atent": ("resnet20", "l2", 1, 10, 0.2, 0.05, 1e-3, "never", "sphere", 0.9, 256, 0.1, 1e-4, 76),
    "cifar10-l2-atent-smoothing": (
        "resnet20", "l2", 0.435, 10, 0.02175, 0.05, 0.577, "never", "sphere", 0.9, 256, 0.1, 1e-4, 84,
    ),
    "cifar10-finetune-atent": (
        "wrn_34_10", "linf", 8 / 255, 10, 0.007, 0, 1e-3, "last", "corner", 0.9, 128, 1e-4, 2e-4, 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_settings_are_the_papers(name):
    j = made(name)
    chain = j.method.chain()
    assert (
        j.model.name, chain.threat.norm, chain.threat.eps, chain.steps, chain.step_size, chain.anchor_weight,
        chain.noise, chain.projection, chain.start, j.method.alpha, j.train.batch_size, j.optimizer.lr,
        j.optimizer.weight_decay, j.train.epochs,
    ) == COLUMNS[name]  # fmt: skip
    assert j.optimizer.name == "SGD"
    assert j.optimizer.momentum == 0.9
    assert chain.gradient == ("sign" if chain.threat.norm == "linf" else "unit")


def test_rates_decay_when_the_authors_do():
    from atent.optim import lr_factor

    def rates(name):
        j = made(name)
        return [round(j.optimizer.lr * lr_factor(j.schedule, e, 1, j.train.epochs), 9) for e in range(j.train.epochs)]

    cifar = rates("cifar10-linf-atent")
    assert cifar[:74] == [0.1] * 74
    assert cifar[74:] == [0.01] * 2
    assert rates("mnist-linf-atent-reported") == [0.03] * 15 + [0.015] * 15
    assert set(rates("mnist-l2-atent")) == {0.01}
    assert rates("cifar10-pretrain")[14:16] == [0.1, 0.01]
    # Epochs 15 and 20, and 5 and 10, counted from 1.
    assert rates("cifar10-acl-trades") == [0.1] * 14 + [0.01] * 5 + [0.001] * 6
    assert rates("cifar10-acl-semi") == [0.1] * 4 + [0.01] * 5 + [0.001] * 6


def test_the_pre_trainings_rate_grows_and_falls_step_by_step():
    from atent.optim import lr_factor

    schedule, warm, total = made("cifar10-acl").schedule, 10 * 96, 1000 * 96
    # 49,000 training images in batches of 512; the authors' scheduler takes its step before the optimizer.
    assert math.ceil(49_000 / 512) == math.ceil(48_928 / 512) == 96
    for now in (0, 1, 95, 500, 959, 960, 961, 40_000, 95_999):
        rate = lr_factor(schedule, now, 96, 1000)
        theirs = (now + 1) / warm if now < warm else (1 + math.cos(math.pi * (now + 1 - warm) / (total - warm))) / 2
        assert rate == pytest.approx(theirs, abs=math.pi / 2 / (total - warm) if now >= warm else 1e-12)


def test_the_smoothing_recipes_noise_is_0_12():
    chain = made("cifar10-l2-atent-smoothing").method.chain()
    assert chain.effective_noise == pytest.approx(0.1203, abs=5e-5)
    same = ATENT(chain.threat, step_size=0.02175, effective_noise=0.12).chain()
    assert same.noise == pytest.approx(0.5754, abs=5e-5)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_whole(name):
    tables, j = read_recipe(name), made(name)
    assert 20 < len(tables["about"]) < 150
    assert tables["about"].isascii()
    assert isinstance(tables["aims"], list)
    threat = threat_of(getattr(j.method, "threat", None), (0.0, 1.0), j.evaluate)
    attacks = labelled([parse(text, threat, ATTACKS) for text in j.evaluate.attacks])
    assert len(attacks) == len(j.evaluate.attacks)
    assert j.evaluate.limit is None or j.evaluate.limit >= 200


def one_epoch(name):
    """One epoch of a recipe at its real architecture on 16 images (random ones of its shape), with two inner steps."""
    j = made(name)
    burn_in = {"burn_in": 1} if getattr(j.method, "burn_in", None) else {}
    method = dataclasses.replace(j.method, steps=2, **burn_in) if hasattr(j.method, "steps") else j.method
    if getattr(method, "teacher", None):  # a run that is not there: the labels teach
        method = dataclasses.replace(method, teacher=None)
    shape = (1, 8, 8) if j.data.name == "digits" else native_shape(j.model.name)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(36, *shape, generator=rng), torch.arange(36) % 10
    data = from_tensors(x[:26], y[:26], x[26:], y[26:], validation=10)
    model = make(j.model, classes=10, shape=shape)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings = dataclasses.replace(
        j.train, epochs=1, validate_attack="none", validate_limit=10, select="clean", device="cpu", threads=None
    )
    fitted = fit(
        model, data, method, optimizer=j.optimizer, schedule=j.schedule, settings=TrainSettings(**vars(settings)),
        augmentation=j.data.augment, progress=False,
    )  # fmt: skip
    assert len(data.train) == 16
    assert fitted.history[0]["loss"] > 0
    assert any(not torch.equal(v, before[k]) for k, v in fitted.model.state_dict().items())


def heavy(name):
    return made(name).model.name.startswith(("wrn", "dm_large", "kw_resnet", "resnet18", "preact"))


@pytest.mark.parametrize("name", [n for n in recipe_names() if not heavy(n)])
def test_one_epoch(name):
    one_epoch(name)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute or two on an idle core
@pytest.mark.parametrize("name", [n for n in recipe_names() if heavy(n)])
def test_one_epoch_of_the_large_ones(name):
    one_epoch(name)


# -- docs/recipes-and-authors.md

PAGE = (Path(__file__).parents[2] / "docs/recipes-and-authors.md").read_text()


def rows():
    """(recipes, field, authors, ours, departure) of each row of the page's tables; the recipes are its heading's."""
    found = []
    for part in re.split(r"^##+ ", PAGE, flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        names = re.findall(r"`([a-z0-9-]+)`", heading)
        for line in body.splitlines():
            cells = [c.strip() for c in line.strip("|").split("|")] if line.startswith("|") else []
            if cells and "." in cells[0]:
                assert len(cells) == 4, line
                found.append((names, *cells))
    return found


def each(cell, names):
    """The TOML values in a cell, one for each recipe; a single one is that of all."""
    values = [tomllib.loads(f"v = {text}")["v"] for text in re.findall(r"`([^`]+)`", cell)]
    assert len(values) in (1, len(names)), cell
    return values * len(names) if len(values) == 1 else values


def number(value):
    """Fractions as numbers, None as an empty list, tuples as lists."""
    if isinstance(value, str) and re.fullmatch(r"[\d.]+/[\d.]+", value):
        above, below = value.split("/")
        return float(above) / float(below)
    return [] if value is None else list(value) if isinstance(value, tuple) else value


def alike(a, b):
    a, b = number(a), number(b)
    if isinstance(a, bool) or isinstance(b, bool) or isinstance(a, str) or isinstance(b, str):
        return type(a) is type(b) and a == b
    return a == b if isinstance(a, list) or isinstance(b, list) else math.isclose(a, b, rel_tol=1e-9)


def field(name, path):
    """A recipe's value at a path such as train.awp.gamma."""
    value = made(name)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def test_the_page_says_what_the_recipes_say():
    cells = [
        (name, path, ours) for names, path, _, cell, _ in rows() for name, ours in zip(names, each(cell, names))
    ]  # fmt: skip
    assert len(cells) > 300
    assert [cell for cell in cells if not alike(field(*cell[:2]), cell[2])] == []


def test_a_field_without_a_departure_has_the_authors_value():
    same = [(names, theirs, ours) for names, _, theirs, ours, departure in rows() if not departure]
    assert len(same) > 100
    for names, theirs, ours in same:
        assert all(alike(a, b) for a, b in zip(each(theirs, names), each(ours, names))), (names, theirs, ours)


def test_every_recipe_that_names_a_source_is_on_the_page():
    for name in recipe_names():
        if re.search(r"et al\.|author", read_recipe(name)["about"]):
            assert f"`{name}`" in PAGE, name


def test_mma_takes_as_many_steps_as_its_authors():
    for name, images, steps in (("mnist-l2-mma", 59_000, 100_000), ("cifar10-l2-mma", 49_000, 50_000)):
        train = made(name).train
        per_epoch = math.ceil(images / train.batch_size)
        assert 0 <= train.epochs * per_epoch - steps < per_epoch
