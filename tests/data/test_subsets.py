"""Subsets of data that is sorted by class, or whose classes are rare: who is in them, and what is measured on them."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import given, train_job
from kit import unsealed
from torch import nn

from atent import runs as folder
from atent import stats
from atent.attacks import FGSM, PGD
from atent.cli import main
from atent.data import DataSettings, from_tensors, load, spread
from atent.data.described import described, spans, unspan, words
from atent.data.split import split, stratified, subset
from atent.evaluate import evaluate
from atent.evaluate.hints import normalisation_hint
from atent.evaluate.outcomes import per_sample
from atent.experiments.certificate import certify_folder
from atent.experiments.evaluation import Request, evaluate_target, summary
from atent.experiments.pipeline import as_begun, run_job
from atent.experiments.plan import Run, state
from atent.experiments.recipes import job
from atent.experiments.target import EvaluateSettings, load_target
from atent.methods import FGSMRS, Standard
from atent.report import report
from atent.threat import Threat
from atent.train import TrainSettings, fit
from atent.train.validation import Validation
from atent.train.watch import watch

OLD = Path(__file__).parents[1] / "files" / "before_subsets"

SHAPES = {
    "balanced": np.repeat(np.arange(7), 30),
    "uneven": np.repeat(np.arange(4), [1, 3, 40, 100]),
    "rare": np.repeat(np.arange(9), [200, 1, 1, 1, 1, 2, 2, 5, 90]),
    "gaps": np.repeat([2, 5, 11], [10, 1, 30]),
}


# ---- the order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_each_next_sample_is_of_the_class_that_lacks_most(name, seed):
    """Against the divisor method in exact arithmetic: n_c / (2 s_c + 1) is the claim of a class that has s_c samples,
    and a class that has none comes before all that have some."""
    y = SHAPES[name]
    order = spread(y, (seed, 2))
    assert sorted(order) == list(range(len(y)))
    size = {label: int((y == label).sum()) for label in set(y.tolist())}
    held = dict.fromkeys(size, 0)
    for at, position in enumerate(order):
        claims = {c: (held[c] == 0, Fraction(size[c], 2 * held[c] + 1)) for c in size if held[c] < size[c]}
        label = int(y[position])
        assert claims[label] == max(claims.values())
        held[label] += 1
        assert (min(held.values()) > 0) == (at + 1 >= len(size))


def test_equal_classes_differ_by_one_at_most():
    y = SHAPES["balanced"]
    for n in range(len(y) + 1):
        got = np.bincount(y[spread(y, (3,))[:n]], minlength=7)
        assert got.max() - got.min() <= 1


def test_the_choice_is_the_same_on_every_machine():
    """Results name their samples by seed: the stream must not move."""
    assert spread(np.repeat([0, 1, 2], [4, 2, 2]), (0, 2)).tolist() == [3, 6, 5, 0, 2, 7, 4, 1]


def test_ids_decide_and_not_the_order_of_the_split():
    y = SHAPES["rare"]
    ids = 5 * np.arange(len(y)) + 3
    x = np.arange(len(y), dtype=np.float32)[:, None]
    whole = split(x, y, None, ids)
    turned = whole.take(np.random.RandomState(0).permutation(len(y)))
    for n in (0, 1, 5, 9, 10, 100):
        a, b = whole.sample(n, (7, 2)), turned.sample(n, (7, 2))
        assert a.ids.tolist() == b.ids.tolist()
        assert torch.equal(a.y, torch.from_numpy(y)[(a.ids - 3) // 5])
        assert torch.equal(a.x[:, 0], ((a.ids - 3) // 5).float())


@pytest.mark.parametrize("name", SHAPES)
def test_a_smaller_sample_begins_the_larger_one(name):
    y = SHAPES[name]
    whole = split(np.zeros((len(y), 1), np.float32), y, None)
    large = whole.sample(len(y) - 1, (0, 2)).ids
    for n in range(len(y)):
        small = whole.sample(n, (0, 2))
        assert torch.equal(small.ids, large[:n])
        classes = len(set(y.tolist()))
        assert len(small.y.unique()) == min(n, classes)
    assert whole.sample(len(y), (0, 2)) is whole
    assert subset(whole, 10**9, "stratified", 0) is whole
    assert subset(whole, "all", "first", 0) is whole
    with pytest.raises(ValueError, match="cannot take a sample of -1"):
        whole.sample(-1, (0, 2))


def test_a_rare_class_keeps_a_sample_of_what_is_carved():
    y = np.repeat(np.arange(4), [900, 95, 3, 2])
    plain, kept = (np.bincount(y[stratified(y, 20, (0,), keep=1, least=k)], minlength=4) for k in (0, 1))
    assert plain.tolist() == [18, 2, 0, 0]
    assert kept.tolist() == [16, 2, 1, 1]
    assert stratified(y, 3, (0,), least=1).shape == (3,)
    # the last sample of a class is never taken, however many are
    y = np.repeat(np.arange(3), [1, 20, 2])
    assert np.bincount(y[stratified(y, 20, (0,), keep=1)], minlength=3).tolist() == [0, 19, 1]
    # where no class is rare, nothing moves
    y = np.repeat(np.arange(4), 50)
    assert np.array_equal(stratified(y, 20, (5,)), stratified(y, 20, (5,), least=1))


# ---- data -------------------------------------------------------------------------------------------------------


def points(per_class=200, classes=3):
    """Images (n, 1, 4, 4) sorted by class, whose first pixel says the class."""
    y = torch.arange(classes).repeat_interleave(per_class)
    x = torch.rand(len(y), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = y / classes
    return x, y


def npz_file(path, per_class=60):
    x, y = points(per_class)
    x = (255 * x).round().to(torch.uint8).numpy()
    np.savez(path, x_train=x, y_train=y.numpy(), x_test=x, y_test=y.numpy())
    return str(path)


def image_folder(path):
    image = pytest.importorskip("PIL.Image")
    for place in (path / part / label for part in ("train", "test") for label in "abc"):
        place.mkdir(parents=True)
        for i in range(40):
            image.fromarray(np.full((4, 4), i, np.uint8)).save(place / f"{i}.png")
    return str(path)


@pytest.mark.parametrize("kind", ["tensors", "npz", "folder"])
def test_every_beginning_of_the_validation_images_holds_every_class(kind, tmp_path):
    if kind == "tensors":
        data = from_tensors(*points(), *points())
    else:
        root = npz_file(tmp_path / "a.npz") if kind == "npz" else image_folder(tmp_path)
        data = load(DataSettings(kind, root, validation=30))
    for n in (3, 4, 15):
        counts = data.validation.first(n).y.bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    for part in ("train", "validation", "test"):
        assert data.sample(part, 12).y.bincount().tolist() == [4, 4, 4]
        assert torch.equal(data.sample(part, 6).ids, data.sample(part, 12).ids[:6])
    assert data.sample("test", 12, "first").y.tolist() == [0] * 12
    # training images, and the whole test set, stay in the order of the source
    assert data.train.ids.tolist() == sorted(data.train.ids.tolist())
    assert data.sample("test", "all") is data.test


def test_the_first_ones_are_an_explicit_choice():
    data = from_tensors(*points(), *points(), subset="first")
    assert data.validation.y.tolist() == sorted(data.validation.y.tolist())
    assert data.sample("validation", 10).y.tolist() == [0] * 10
    assert torch.equal(data.sample("test", 10).ids, torch.arange(10))
    both = from_tensors(*points(), *points())
    assert set(both.validation.ids.tolist()) == set(data.validation.ids.tolist())
    assert torch.equal(both.train.ids, data.train.ids)
    with pytest.raises(ValueError, match="subset 'some' is not known: use one of stratified, first"):
        from_tensors(*points(), *points(), subset="some")


def test_the_split_seed_draws_them_and_nothing_else_does():
    one, other = (from_tensors(*points(), *points(), split_seed=seed) for seed in (0, 1))
    assert not torch.equal(one.sample("test", 50).ids, other.sample("test", 50).ids)
    reported = described(one, "test", one.sample("test", 50))
    assert reported == {
        "name": "tensors", "split": "test", "n": 50, "of": 600, "subset": "stratified", "subset_seed": 0,
        "ids": spans(one.sample("test", 50).ids.tolist()),
    }  # fmt: skip
    assert words(reported) == "a stratified sample of 50 of 600 (seed 0)"
    assert words({"n": 5000, "of": 10_000}) == "the first 5,000 of 10,000"  # results made before
    assert words({"n": 500, "of": 500, "subset": "stratified", "subset_seed": 0}) == "all 500"


@pytest.mark.parametrize("word", ["all", "none"])
def test_all_is_a_limit_everywhere(word):
    made = train_job(
        *["digits-linf-pgdat", "--evaluate.limit", word, "--data.limit", word, f"--data.test_limit={word}",
         "--train.validate_limit", word]
    )  # fmt: skip
    assert (made.evaluate.limit, made.data.limit, made.data.test_limit, made.train.validate_limit) == (None,) * 3 + (0,)
    limits = {"evaluate": {"limit": "all"}, "data": {"limit": "all"}, "train": {"watch_limit": "all"}}
    read = job({"method": {"name": "Standard"}, **limits}, "mine")
    assert (read.evaluate.limit, read.data.limit, read.train.watch_limit) == (None, None, "all")
    assert TrainSettings(validate_limit="all").validate_limit == 0
    for command in ("attack", "certify", "evaluate", "theory"):
        made = given(command, "run", "--limit", word, "--subset", "first")
        options = vars(made["target"]) if command in ("attack", "evaluate") else made
        assert (options["limit"], options["subset"]) == ("all", "first")
    with pytest.raises(ValueError, match="'all' or none"):
        EvaluateSettings(limit="every")


# ---- training ---------------------------------------------------------------------------------------------------


class Grows(nn.Module):
    """Gives class 0 to everything after its first step, and reads the class from the first pixel from the second on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.steps += 1
        seen = (3 * x[:, 0, 0, 0]).round().long() * (self.steps > 1)
        return 5.0 * nn.functional.one_hot(seen, 3) - 2 + 0 * self.weight + 1e-3 * x.flatten(1)[:, 1:4]


def grown(data, **changes):
    settings = TrainSettings(
        epochs=2, batch_size=len(data.train), validate_limit=15, device="cpu", watch_limit=12, **changes
    )
    return fit(Grows(), data, Standard(), settings=settings, progress=False)


def test_the_best_epoch_of_sorted_data_is_chosen_on_every_class(tmp_path):
    """By the first 15 validation images, all of class 0, the constant network of epoch 1 is perfect."""
    sources = {
        "tensors": from_tensors(*points(), *points()),
        "npz": load(DataSettings("npz", npz_file(tmp_path / "a.npz"), validation=30)),
    }
    for data in sources.values():
        fitted = grown(data)
        assert [row["validation_clean"] for row in fitted.history] == [pytest.approx(1 / 3), 1.0]
        assert [row["train_clean"] for row in fitted.history] == [pytest.approx(1 / 3), 1.0]
        assert fitted.best["epoch"] == 2
    first = grown(from_tensors(*points(), *points(), subset="first"))
    assert [row["validation_clean"] for row in first.history] == [1.0, 1.0]
    assert first.best["epoch"] == 1


def test_what_validation_and_watch_measure_is_recorded(tmp_path):
    data, threat = from_tensors(*points(), *points()), Threat("linf", 0.01)
    settings = TrainSettings(
        epochs=1, batch_size=270, validate_limit=15, validate_attack="FGSM", watch_limit=9, watch_steps=1, device="cpu"
    )
    fit(Grows(), data, FGSMRS(threat), settings=settings, run=tmp_path / "run", progress=False)
    reported = folder.read_json(tmp_path / "run/config.json")
    assert reported["data"]["subset"] == "stratified"
    probe = Validation(data, settings, threat, robust=True)
    for name, part in (*probe.parts.items(), ("watch", watch(FGSMRS(threat), data, settings, threat).part)):
        record = reported["about"]["subsets"][name]
        assert unspan(record["ids"]) == part.ids.tolist()
        assert part.y.bincount().tolist() == [len(part) // 3] * 3
        assert record["n"] == (9 if name == "watch" else 15)
    assert reported["about"]["subsets"]["validation"]["of"] == len(data.validation)


def test_runs_of_other_training_seeds_and_methods_are_evaluated_on_the_same_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    npz_file(tmp_path / "a.npz")
    found = []
    threat = {"threat": {"norm": "linf", "eps": 0.05}, "steps": 1}
    for seed, method in enumerate(({"name": "Standard"}, {"name": "PGDAT", **threat})):
        made = job(small({"method": method, "train": {"seed": seed}}), "mine")
        said = []
        done = run_job(made, tmp_path / f"run{seed}", progress=False, say=said.append)
        assert "subset  validation: a stratified sample of 15 of 30 (seed 0)" in said
        assert "subset  test: a stratified sample of 21 of 180 (seed 0)" in said
        found.append(done.evaluation)
        subsets = folder.read_json(tmp_path / f"run{seed}/config.json")["about"]["subsets"]
        assert subsets == folder.read_json(tmp_path / "run0/config.json")["about"]["subsets"]
    assert found[0].data == found[1].data
    assert [row.n for row in found[0].per_class] == [7, 7, 7]


def small(changes):
    tables = {
        "data": {"name": "npz", "root": "a.npz", "validation": 30},
        "model": {"name": "small_net:build"},
        "train": {"epochs": 1, "batch_size": 50, "validate_limit": 15, "device": "cpu"},
        "evaluate": {"attacks": ["FGSM"], "norm": "linf", "eps": 0.05, "limit": 21},
    }
    for section, values in changes.items():
        tables[section] = {**tables.get(section, {}), **values}
    return tables


# ---- evaluation ---------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    def forward(self, x):
        return torch.tensor([3.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :1]


def test_per_class_shares_are_those_of_the_outcomes():
    x, y = points(20)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    attacks = [FGSM(Threat("linf", 0.05)), PGD(Threat("linf", 0.1), steps=3)]
    # another order, and a class without samples
    some = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    some = some[y[some] != 1]
    found = evaluate(net, x[some], y[some], attacks, ids=some)
    samples = per_sample(found.outcomes)
    assert [row["class"] for row in found.per_class] == [0, 2]
    for row in found.per_class:
        own = [s for s in samples if int(y[s["id"]]) == row["class"]]
        stood = [s["right"] and all(v != "fooled" for v in s["attacks"].values()) for s in own]
        assert row["n"] == len(own) == 20
        assert row["clean"] == stats.share(sum(s["right"] for s in own), 20)
        assert row["worst"] == stats.share(sum(stood), 20)
    assert sum(row["worst"]["k"] for row in found.per_class) == found.worst["k"]
    assert json.loads(json.dumps(found.to_json()))["per_class"] == found.per_class


@pytest.mark.parametrize("cascade", [True, False, "threat"])
def test_pairs_of_classes_are_those_of_the_adversarial_inputs(tmp_path, cascade):
    random = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 16, generator=random), torch.arange(3).repeat_interleave(20)
    net = nn.Linear(16, 3)
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, 16, generator=random))
        net.bias.copy_(-net.weight.sum(1) / 2)
    attacks = {"fgsm": FGSM(Threat("linf", 0.02)), "pgd": PGD(Threat("linf", 0.1), steps=3)}
    found = evaluate(net, x, y, attacks, cascade=cascade, batch=7, resume=tmp_path / "rows.jsonl")
    right, expected = net(x).argmax(1) == y, {}
    for name in found.attacks:
        predicted = net(attacks[name](net, x, y)).argmax(1)
        for i in (right & (predicted != y)).nonzero().flatten().tolist():
            expected.setdefault(i, (int(y[i]), int(predicted[i])))
    pairs = list(expected.values())
    rows = sorted(((a, b, pairs.count((a, b))) for a, b in set(pairs)), key=lambda r: (-r[2], r[0], r[1]))
    assert len(rows) > 1
    assert found.fooled_as == [{"class": a, "predicted": b, "k": k, "n": 20} for a, b, k in rows]
    assert sum(row["k"] for row in found.fooled_as) == found.clean["k"] - found.worst["k"]
    # From the rows of a file, and without them.
    assert evaluate(net, x, y, attacks, cascade=cascade, resume=tmp_path / "rows.jsonl") == found
    assert evaluate(net, x, y, {}).fooled_as == []


def test_the_normalisation_hint_looks_at_every_class():
    """The first 1000 samples are of class 0, which the raw images are all given."""
    y = torch.arange(3).repeat_interleave(1000)
    x = 0.4 + 0.2 * (y / 2)[:, None, None, None].expand(-1, 1, 2, 2)

    def predict(z):
        level = z.flatten(1).mean(1)
        return torch.where(level < -0.6, 0, torch.where(level > 0.6, 2, torch.where(level.abs() < 1e-3, 1, 0)))

    right = predict(x) == y
    assert right[:1000].all()
    hint = normalisation_hint(right, x, predict, y)
    assert hint is not None
    assert "33 % on raw pixels, 100 % on standardised ones" in hint


def test_a_constant_network_is_not_called_robust(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    npz_file(tmp_path / "a.npz")
    (tmp_path / "fixed.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return torch.tensor([3.0, 0.0, 0.0]) + 0 * x.flatten(1)[:, :3]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    about = {"data": "npz", "root": "a.npz", "norm": "linf", "eps": "0.1", "attacks": ["FGSM"], "limit": 30}
    found = evaluate_target(load_target("fixed:Net", **about), progress=False)
    assert found.worst.k == 10
    assert found.hint == "the network gives class 0 to all 30 samples", "advice on a training has no use here"
    assert "samples  npz, test images: a stratified sample of 30 of 180 (seed 0)" in summary(found)
    first = evaluate_target(load_target("fixed:Net", **about, subset="first"), progress=False)
    assert first.worst.k == 30
    assert first.hint.startswith("all 30 samples are of class 0")
    assert "samples  npz, test images: the first 30 of 180" in summary(first)
    assert evaluate(Constant(), *points(), []).hint.startswith("the network gives class 0 to all 600 samples")


# ---- run folders made before ----------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Run folders that a version without data.subset left, of a file that is sorted by class: one finished, one killed
    after two of four epochs."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("started", "finished"):
        assert "subset" not in folder.read_json(tmp_path / name / "config.json")["data"]
    return tmp_path


def test_an_old_run_resumes_on_the_images_that_it_began_with(old, capsys):
    before = folder.read_jsonl("started/metrics.jsonl")
    assert main(["train", "--resume", "started", "--quiet", "--trust-code"]) == 0, capsys.readouterr().err
    rows = folder.read_jsonl("started/metrics.jsonl")
    assert rows[:2] == before
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    x = np.load("sorted.npz")["x_train"]
    carved = load(DataSettings("npz", "sorted.npz", validation=45, subset="first")).validation
    assert carved.ids.tolist() == sorted(carved.ids.tolist())
    net = load_target("started", which="last", device="cpu", trust_code=True).model
    seen = net(torch.from_numpy(x[carved.ids[:15].numpy()] / np.float32(255))).argmax(1)
    assert rows[-1]["validation_clean"] == pytest.approx((seen == 0).double().mean().item())
    found = folder.read_json("started/evaluation.json")
    assert found["outcomes"]["ids"] == "0-29"
    assert words(found["data"]) == "the first 30 of 90"


def test_an_old_run_of_python_resumes_on_the_images_that_it_began_with(tmp_path):
    """As one killed by an older version: its config.json, and the settings in its state, know no data.subset."""

    def run(name, data, **more):
        settings = TrainSettings(epochs=2, batch_size=540, validate_limit=15, device="cpu")
        return fit(Grows(), data, Standard(), run=tmp_path / name, settings=settings, progress=False, **more)

    def killed(row):
        raise KeyboardInterrupt

    first, now = from_tensors(*points(), *points(), subset="first"), from_tensors(*points(), *points())
    with pytest.raises(KeyboardInterrupt):
        run("short", first, report=killed)
    config = folder.read_json(tmp_path / "short/config.json")
    assert config["data"].pop("subset") == "first"
    folder.write_json(unsealed(tmp_path / "short") / "config.json", config)
    resumed = run("short", now, resume=True)
    assert [row["validation_clean"] for row in resumed.history] == [1.0, 1.0]
    assert resumed.best["epoch"] == 1
    # a run that recorded its rule is held to it
    with pytest.raises(KeyboardInterrupt):
        run("other", first, report=killed)
    with pytest.raises(ValueError, match="other settings"):
        run("other", now, resume=True)


def test_an_old_run_is_evaluated_again_on_its_images_and_on_others_by_request(old, capsys):
    kept = folder.read_json("finished/evaluation.json")
    again = evaluate_target(
        load_target("finished", device="cpu", trust_code=True), Request(cascade=False), progress=False
    )
    assert again.outcomes["ids"] == kept["outcomes"]["ids"] == "0-29"
    assert again.worst.k == 30
    assert again.hint.startswith("all 30 samples are of class 0")
    args = ["evaluate", "finished", "--attacks", "FGSM", "--subset", "stratified", "--per-class", "--quiet"]
    args.append("--trust-code")
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "a stratified sample of 30 of 90 (seed 0)" in out
    assert "per class, 95 % intervals" in out
    found = folder.read_json("finished/evaluation-2.json")
    # the run keeps 80 test images by the same rule: 30, 30 and 20 of the three classes
    assert [row["n"] for row in found["per_class"]] == [11, 11, 8]
    assert found["clean"]["k"] == 11
    assert found["hint"].startswith("the network gives class 0 to all 30 samples")
    for row in found["per_class"]:
        (line,) = [line for line in out.splitlines() if line.startswith(f"│ {row['class']} ")]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[1:3] == [str(row["n"]), stats.percent(row["clean"])]
    # All that is classified correctly is so with any noise.
    assert "fooled_as" not in found  # empty lists are omitted
    assert "confusions under attack" not in out
    assert main([*args, "--limit", "all"]) == 0
    assert folder.read_json("finished/evaluation-3.json")["n"] == 80  # data.test_limit of the run
    page = report(["finished"], images=3, progress=False, trust_code=True)
    assert "Test images, the first 3 of 90, under" in page
    assert "the first 30 of 90" in page
    assert "Accuracy by class" in page
    assert "FGSM on 30 of 90 images" in page


def test_an_old_certificate_grows_on_the_images_that_it_began_with(old):
    made = {"sigma": 0.1, "n0": 20, "n": 200, "alpha": 0.01, "device": "cpu", "progress": False, "trust_code": True}
    out, content, found = certify_folder(Path("finished"), limit=12, **made)
    assert [row.idx for row in found.rows] == list(range(12))
    # Its noise was another: the rows that are there are not mixed with new ones.
    assert out.name == "certificate-2.json"
    assert content.images.ids == "0-11"
    # by request, other images in the same table; the report shows those that the last result is of
    out, content, found = certify_folder(Path("finished"), limit=9, subset="stratified", **made)
    assert np.bincount([row.label for row in found.rows]).min() >= 2
    assert content.images.text == "a stratified sample of 9 of 90 (seed 0)"
    from atent.report.collect import read

    _, shown = read(Path("finished")).certificates.values()
    assert len(shown.radii) == 9


def test_bounds_of_other_images_do_not_replace_those_that_are_there(old):
    bounds = {"method": "ibp", "radii": [0.01], "limit": 9, "device": "cpu", "progress": False, "trust_code": True}
    names = [certify_folder(Path("finished"), subset=rule, **bounds)[0].name for rule in ("first", "stratified") * 2]
    assert names == ["certificate-2.json", "certificate-3.json"] * 2


def test_an_old_run_is_not_mixed_into_a_comparison_of_new_ones(old):
    saved = folder.read_json("finished/config.json")
    made = job({s: v for s, v in saved.items() if s not in ("recipe", "about", "provenance")}, "sorted")
    assert made.data.subset == "stratified"
    run = Run("sorted", made, Path("finished"))
    with pytest.raises(ValueError, match=r"other settings \(data.subset first, not stratified\)"):
        state(run, job)
    assert state(Run("sorted", as_begun(made, Path("finished")), Path("finished")), job) == "finished"
    assert as_begun(made, Path("nowhere")) is made
