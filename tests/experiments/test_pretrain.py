"""`atent pretrain`, and what begins from the run that it makes: fine-tuning, linear evaluation, pseudo-labels."""

import copy
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pretraining as benchmark
import pytest
import torch

import atent
from atent import Threat
from atent.cli import main
from atent.data import DataSettings, from_tensors
from atent.data import load as load_data
from atent.experiments.pretraining import pretraining
from atent.experiments.recipes import job, read_recipe
from atent.methods import ACL, AWP, DistilledTRADES, Standard
from atent.models import ModelSettings, make
from atent.optim import Optimizer
from atent.runs.checkpoint import read_weights, save_weights
from atent.runs.pretrained import load_start
from atent.testing.networks import same
from atent.train import Callback, TrainSettings, fit

LINF = Threat("linf", 0.15)
SHORT = [
    "--data.limit", "60", "--data.test-limit", "40", "--train.epochs", "1", "--train.batch-size", "30",
    "--train.validate-limit", "20", "--train.validate-attack", "none", "--train.device", "cpu",
    "--evaluate.limit", "40", "--evaluate.attacks", "FGSM", "--quiet",
]  # fmt: skip
SETTINGS = TrainSettings(
    epochs=2, batch_size=30, device="cpu", validate_limit=20, validate_attack="none", select="last"
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of runs with runs/digits-acl, pre-trained on 60 digits."""
    place = tmp_path_factory.mktemp("pretrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["pretrain", "digits-acl", *SHORT, "--method.steps", "1"]) == 0
    return place


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A copy of it, as the current directory."""
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits():
    return load_data(DataSettings(limit=60))


def headed(projection=(8, 6)):
    return make(ModelSettings("resnet8", projection=projection), classes=10, shape=(1, 8, 8), seed=1)


class StopAfterOne(Callback):
    def epoch(self, progress, row):
        return "enough"


# -- pre-training


def test_a_run_is_like_any_other(here, capsys):
    run = here / "runs" / "digits-acl"
    row = json.loads((run / "metrics.jsonl").read_text())
    assert {"loss", "clean", "robust", "clean_loss", "robust_loss", "alignment", "validation_clean"} <= set(row)
    assert row["loss"] == pytest.approx((row["clean_loss"] + row["robust_loss"]) / 2, rel=1e-6)
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["projection"] == [64, 64]
    assert config["model"]["branch"] == "a"
    model = atent.load(run)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    before = (run / "best.safetensors").read_bytes()
    assert main(["pretrain", "--resume", "runs/digits-acl", "--quiet"]) == 0
    assert "FGSM" in capsys.readouterr().out
    assert (run / "best.safetensors").read_bytes() == before


def test_a_resumed_pretraining_is_the_unbroken_one(tmp_path):
    ends = []
    for name, stops in (("whole", []), ("broken", [StopAfterOne()])):

        def once(resume=False, callbacks=(), name=name):
            model = headed()
            method = ACL(LINF, steps=1)
            optimizer = Optimizer("LARS", 1.0)
            fitted = fit(
                model, digits(), method, optimizer=optimizer, settings=SETTINGS, run=tmp_path / name, progress=False,
                resume=resume, callbacks=callbacks,
            )  # fmt: skip
            return fitted

        fitted = once(callbacks=stops)
        if stops:
            assert len(fitted.history) == 1
            fitted = once(resume=True)
        assert len(fitted.history) == 2
        ends.append(({k: v.clone() for k, v in fitted.model.state_dict().items()}, fitted.history[-1]["loss"]))
    assert same(*[end[0] for end in ends])
    assert ends[0][1] == ends[1][1]


def test_a_last_batch_of_one_joins_the_one_before(tmp_path):
    x, y = torch.rand(61, 1, 8, 8), torch.arange(61) % 10
    data = from_tensors(x, y, x[:20], y[:20], validation=20)
    assert len(data.train) % 20 == 1
    settings = dataclasses.replace(SETTINGS, epochs=1, batch_size=20)
    fitted = fit(headed(), data, ACL(LINF, "S2S"), settings=settings, progress=False)
    assert fitted.history[0]["loss"] > 0
    settings = dataclasses.replace(SETTINGS, epochs=1, batch_size=1)
    with pytest.raises(ValueError, match=r"cannot train on a batch of one image .*: use batch_size 2 or more"):
        fit(headed(), data, ACL(LINF, "S2S"), settings=settings, progress=False)


def test_the_branch_is_one_that_the_variant_trains():
    def made(variant, branch=None):
        one = job(read_recipe("digits-acl"), "digits-acl")
        method = dataclasses.replace(one.method, variant=variant)
        model = dataclasses.replace(one.model, branch=branch, projection=())
        return pretraining(dataclasses.replace(one, method=method, model=model)).model

    assert [made(v).branch for v in ("S2S", "A2S", "A2A", "DS")] == ["n", "a", "a", "a"]
    assert made("A2S", "n").branch == "n"
    assert made("DS").projection == (128, 128)
    for variant, branch in (("S2S", "a"), ("A2A", "n")):
        with pytest.raises(ValueError, match=f"model.branch {branch} is not trained by variant {variant}"):
            made(variant, branch)


# -- what begins from it


@pytest.mark.parametrize("which", ["n", "a"])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_encoder_comes_with_one_set_of_batch_norms(folder, which, frozen):
    run = folder / "runs" / "digits-acl"
    state = read_weights(run / "best.safetensors")[1]
    model = make(ModelSettings("resnet8", frozen=frozen), classes=10, shape=(1, 8, 8))
    load_start(model, run, which)
    network = model.network if frozen else model
    for name, value in network.state_dict().items():
        if name.startswith("fc."):
            assert not value.any()
            continue
        other = name.replace("bn1.", f"bn1.branch_{which}.").replace("bn2.", f"bn2.branch_{which}.")
        other = other.replace("shortcut.1.", f"shortcut.1.branch_{which}.")
        assert torch.equal(value, state["network." + other]), name
    # the features are those of the branch
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = atent.load(run)
    with atent.models.dual.branch(seen, which):
        want = seen.network(x)
    plain = copy.deepcopy(network).eval()
    plain.fc = torch.nn.Identity()
    assert torch.equal(plain(x), want)


def test_without_a_word_it_is_the_branch_of_the_run(folder):
    run = folder / "runs" / "digits-acl"
    found = []
    for which in (None, "a"):
        model = make(ModelSettings("resnet8"), classes=10, shape=(1, 8, 8))
        load_start(model, run, which)
        found.append(model.state_dict())
    assert same(*map(dict, found))


def test_linear_evaluation_trains_the_last_layer_alone(here):
    assert main(["train", "digits-acl-linear", *SHORT, "--method.steps", "1"]) == 0
    model = atent.load("runs/digits-acl-linear")
    begun = make(ModelSettings("resnet8", frozen=True), classes=10, shape=(1, 8, 8))
    load_start(begun, "runs/digits-acl")
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, begun.state_dict()[k])]
    assert changed == ["network.fc.weight", "network.fc.bias"]


def test_distillation_resumes_without_its_teacher(folder, tmp_path):
    teacher = tmp_path / "teacher"
    fit(make(ModelSettings("digits_cnn"), classes=10, shape=(1, 8, 8)), digits(), Standard(), run=teacher,
        settings=SETTINGS, progress=False, builder="digits_cnn")  # fmt: skip
    ends = []
    for name in ("whole", "broken"):

        def once(resume=False, callbacks=(), name=name):
            model = make(ModelSettings("digits_cnn"), classes=10, shape=(1, 8, 8), seed=2)
            method = AWP(DistilledTRADES(LINF, str(teacher), steps=1), 0.01)
            return fit(model, digits(), method, settings=SETTINGS, run=tmp_path / name, progress=False, resume=resume,
                       callbacks=callbacks)  # fmt: skip

        if name == "broken":
            once(callbacks=[StopAfterOne()])
            shutil.rmtree(teacher)
            ends.append(once(resume=True).model.state_dict())
        else:
            ends.append(once().model.state_dict())
    assert same(*map(dict, ends))


# -- one line each


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain"], "no recipe given: write `atent pretrain RECIPE`"),
        (["pretrain", "nope"], "unknown recipe 'nope' (known: "),
        (["pretrain", "digits-linf-trades"], "TRADES trains with labels: use `atent train`"),
        (["pretrain", "digits-acl", "--method.variant", "S2S", "--model.branch", "a"], "is not trained by variant S2S"),
        (["pretrain", "digits-acl", "--method.views.flip", "2"], "flip (of views) is a probability, in [0, 1], got 2"),
        (["pretrain", "digits-acl", "--train.embedding.weight", "0.1"], "regularisation does not support ACL, which"),
        (["pretrain", "digits-acl", "--root", "x"], "--root needs --resume"),
        (["train", "digits-acl"], "ACL trains without labels: use `atent pretrain digits-acl`"),
        (["train", "digits-acl", "--train.awp.gamma", "0.1"], ": ACL trains without labels: use `atent pretrain"),
        (["train", "digits-linf-trades", "--model.frozen"], "keeps the weights that the training begins with"),
        (["train", "digits-linf-trades", "--model.branch", "n"], "is for weights of a pre-training run: give"),
        (["train", "digits-acl-trades", "--model.name", "digits_cnn"], "give --model.name resnet8"),
        (["train", "digits-acl-semi", "--method.teacher", "runs/none"], "runs/none is not a run folder"),
        (["train", "digits-acl-trades", "--model.weights", "runs/gone"], "no weights at"),
    ],
)
def test_one_line_says_what_to_do(here, capsys, words, says):
    before = sorted(p.name for p in (here / "runs").iterdir())
    assert main([*words, *([] if len(words) == 1 else SHORT)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in told
    assert sorted(p.name for p in (here / "runs").iterdir()) == before


def test_an_interrupted_pretraining_names_its_command(folder):
    from atent.runs.folder import read_config
    from atent.train.interrupt import how_to_resume

    config = read_config(folder / "runs/digits-acl/config.json")
    assert "`atent pretrain --resume runs/a`" in how_to_resume(config, Path("runs/a"), 1, 0)


def test_a_missing_teacher_names_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-acl-semi", *SHORT]) == 2
    assert "run `atent train digits-acl-few` first" in capsys.readouterr().err


def test_a_missing_pretraining_names_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-acl-trades"]) == 2
    assert "run `atent pretrain digits-acl` first" in capsys.readouterr().err


def test_a_branch_of_ordinary_weights_is_one_line(tmp_path):
    model = make(ModelSettings("digits_cnn"), classes=10, shape=(1, 8, 8))
    save_weights(tmp_path / "plain.safetensors", model, {"model": {"name": "digits_cnn"}})
    with pytest.raises(ValueError, match="has one set of batch-norms: omit it") as error:
        load_start(model, tmp_path / "plain.safetensors", "n")
    assert "\n" not in str(error.value)
    load_start(model, tmp_path / "plain.safetensors")


def test_a_teacher_of_another_task_is_one_line(tmp_path):
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    teacher = tmp_path / "teacher"
    fit(make(ModelSettings("digits_cnn"), classes=3, shape=(1, 8, 8)), from_tensors(x, y, x, y), Standard(),
        run=teacher, settings=SETTINGS, progress=False, builder="digits_cnn", builder_args={"classes": 3})  # fmt: skip
    model = make(ModelSettings("digits_cnn"), classes=10, shape=(1, 8, 8))
    with pytest.raises(ValueError, match="has 3 classes, the data have 10") as error:
        fit(model, digits(), DistilledTRADES(LINF, str(teacher)), settings=SETTINGS, progress=False)
    assert "\n" not in str(error.value)


# -- benchmarks/pretraining.py


def test_the_benchmark_compares_equal_numbers_of_samples(tmp_path):
    made = benchmark.jobs("digits", 5, tmp_path, ["--data.validation", "100"])
    assert set(made) == {"acl", *benchmark.ROWS}
    assert {one.train.seed for one in made.values()} == {5}
    assert {one.evaluate.attacks for one in made.values()} == {benchmark.ATTACKS}
    for one, other in benchmark.PAIRS:
        a, b = made[one], made[other]
        seen = [x.train.epochs * min(x.data.limit or 1197, 1197) for x in (a, b)]
        assert abs(seen[0] / seen[1] - 1) < 0.1
        assert (a.model.weights, b.model.weights) == (str(tmp_path / "acl-seed5"), None)
        assert dataclasses.replace(a.model, weights=None) == b.model
        assert a.optimizer == b.optimizer
        assert a.schedule == b.schedule
    assert made["semi"].method.teacher == str(tmp_path / "few-seed5")


# -- docs/pretraining.md


def test_the_page_runs(here, capsys):
    text = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(code, "docs/pretraining.md", "exec"), names)
    assert names["fitted"].history[0]["robust_loss"] >= 0
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert len(commands) == 5
    for _, verb, recipe in map(shlex.split, commands):
        if recipe not in ("digits-acl", "digits-acl-linear"):  # made before, and tested above
            few = [] if recipe == "digits-acl-few" else ["--method.steps", "1"]
            assert main([verb, recipe, *SHORT, *few]) == 0, capsys.readouterr().err
    saved = torch.load("runs/digits-acl-semi/last/state.pt", weights_only=True)
    with torch.no_grad():
        want = atent.load("runs/digits-acl-few")(digits().train.batch(range(60))[0])
    # One network and its data in batches of another size: float32 rounding of logits of a few units.
    assert torch.allclose(saved["method"]["teacher"], want, atol=1e-4)


def test_a_branch_that_was_not_trained_is_one_line(tmp_path):
    run = tmp_path / "run"
    fit(headed(), digits(), ACL(LINF, "S2S"), settings=dataclasses.replace(SETTINGS, epochs=1), run=run, progress=False)
    model = make(ModelSettings("resnet8"), classes=10, shape=(1, 8, 8))
    load_start(model, run)
    state = read_weights(run / "best.safetensors")[1]
    assert torch.equal(model.bn1.running_mean, state["network.bn1.branch_n.running_mean"])
    with pytest.raises(ValueError, match=r"branch a were not trained in .*: use model\.branch n"):
        load_start(model, run, "a")
