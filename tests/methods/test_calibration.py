"""ATENT.calibrate finds the gamma or the noise that keeps samples at a radius, and a training adopts it."""

import json
import math

import pytest
import torch
from commands import train_job
from kit import batch, network, stream
from torch import nn

from atent import Threat
from atent.cli import main
from atent.data import DataSettings, load
from atent.methods import ATENT, AWP
from atent.models import build
from atent.train import TrainSettings, fit
from atent.train.calibration import adopt
from atent.train.interrupt import Interrupted

pytestmark = pytest.mark.usefixtures("seeded")


def measured(method, model, x, y, seed=77):
    """Quantiles of ||x^K - x||, from draws that the calibration has not seen."""
    last = method.adversary(model, x, y, rng=stream(seed))[-1]
    distances = method.threat.distance(last, torch.cat([x] * method.chains))
    return torch.quantile(distances, torch.tensor([0.1, 0.5, 0.9], dtype=distances.dtype)).tolist()


# Method, a radius to find gamma for, and one to find noise for; noise only adds to what the chain does without it, and
# does not spread what is projected.
METHODS = {
    "l2-raw": (ATENT(Threat("l2", 1.0), variant="published", noise=0.05), 0.9, 1.6),
    "l2-unit": (ATENT(Threat("l2", 1.0)), 0.8, 1.6),
    "l2-chains": (ATENT(Threat("l2", 1.0), variant="published", noise=0.05, chains=2, step_size=0.3), 0.7, 1.6),
    "linf-sign": (ATENT(Threat("linf", 0.2), projection="never", start="uniform"), 0.25, 0.8),
    "linf-projected": (ATENT(Threat("linf", 0.2), noise=0.02), 0.15, None),
    "warming": (ATENT(Threat("l2", 1.0), eps_warmup=0.5), 0.8, 1.6),
}


CASES = [
    pytest.param(method, setting, target, id=f"{name}-{setting}")
    for name, (method, *targets) in METHODS.items()
    for setting, target in zip(("gamma", "noise"), targets, strict=True)
    if target is not None
]


@pytest.mark.parametrize(("method", "setting", "target"), CASES)
def test_the_median_distance_is_the_target(method, setting, target):
    model, (x, y) = network(), batch(n=200)
    found = method.calibrate(model, x, y, target=target, setting=setting)
    assert (found.setting, found.target, found.n) == (setting, target, 200)
    assert found.median == pytest.approx(target, rel=0.01)
    assert 0 < found.q10 <= found.median <= found.q90
    assert getattr(found.method, setting) == found.value > 0
    low, median, high = measured(found.method, model, x, y)
    assert median == pytest.approx(target, rel=0.05)
    assert (low, high) == (pytest.approx(found.q10, rel=0.1), pytest.approx(found.q90, rel=0.1))
    assert f"{found.value:.4g}" in str(found)


def test_a_network_without_gradient_has_a_closed_form():
    """Noise and pull alone: an autoregression of 2,500 pixels, so that every distance is near sqrt(d) deviations."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2500, 3)).double()
    nn.init.zeros_(model[1].weight)
    x = torch.full((100, 1, 50, 50), 0.5, dtype=torch.float64)
    y = torch.zeros(100, dtype=torch.long)
    steps, step, noise = 8, 0.1, 0.1
    threat = Threat("l2", 5.0, box=(-50, 50))
    method = ATENT(threat, steps, step, variant="published", noise=noise, start="zero")
    found = method.calibrate(model, x, y, target=4.0)
    kept = 1 - step * found.value
    variance = 2 * step * noise**2 * sum(kept ** (2 * k) for k in range(steps))
    assert found.median == pytest.approx(math.sqrt(2500 * variance), rel=0.01)
    found = method.calibrate(model, x, y, target=9.0, setting="noise")
    kept = 1 - step * 0.05
    expected = 9.0 / math.sqrt(2500 * 2 * step * sum(kept ** (2 * k) for k in range(steps)))
    assert found.value == pytest.approx(expected, rel=0.02)
    assert found.method.gamma is None


def test_the_default_target_is_eps_and_the_random_numbers_repeat():
    model, (x, y) = network(True, 0.3), batch(n=64)
    method = ATENT(Threat("l2", 1.0), effective_noise=0.01, calibrated=True)
    a, b = (method.calibrate(model, x, y, batch=16) for _ in range(2))
    assert a == b
    assert a.target == 1.0
    assert a.method == ATENT(Threat("l2", 1.0), effective_noise=0.01, gamma=a.value)
    assert method.calibrate(model, x, y, batch=16, seed=1).value != a.value
    found = method.calibrate(model, x, y, target=1.4, setting="noise")
    assert (found.method.noise, found.method.effective_noise) == (found.value, None)


def test_the_objective_does_not_move_the_chain():
    model, (x, y) = network(), batch(n=32)
    given = {"variant": "published", "noise": 0.05}
    a, b = (
        ATENT(Threat("l2", 1.0), objective=o, **given).calibrate(model, x, y, target=0.9)
        for o in ("free-energy", "data-entropy")
    )
    assert a.value == b.value
    assert b.method.objective == "data-entropy"
    assert (
        ATENT(Threat("l2", 1.0), objective="data-entropy", **given).calibrate(model, x, y, 1.5, setting="noise").value
    )


def test_the_model_and_the_random_state_come_back():
    model, (x, y) = network(True, 0.3), batch()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    ATENT(Threat("l2", 1.0)).calibrate(model, x, y)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        (
            {},
            {"target": 5.0},
            r"no gamma gives a median distance of 5: it ranges from 1\.\d+ at gamma .* to 0\.\d+ at 1",
        ),
        ({}, {"target": 0.01}, r"no gamma gives .* change steps, step_size, start or noise"),
        ({}, {"target": 0.01, "setting": "noise"}, r"no noise gives .* start or gamma"),
        ({}, {"target": 0.0}, "target must be above 0, got 0"),
        ({}, {"target": math.inf}, "target must be"),
        ({}, {"setting": "alpha"}, "setting 'alpha' is not known: use one of gamma, noise"),
        ({}, {"batch": 0}, "batch must be at least 1, got 0"),
        (
            {"projection": "every"},
            {},
            "projection 'every' projects the samples to eps 1, so the radius 1 cannot",
        ),
        ({"gamma": "0.1..0.2"}, {}, "gamma '0.1..0.2' is a schedule"),
        ({"step_size": 0.0}, {}, "step_size 0 does not move the samples"),
    ],
    ids=str,
)
def test_what_cannot_be_met_is_refused_with_what_was_seen(method, given, said):
    model, (x, y) = network(), batch()
    with pytest.raises(ValueError, match=said) as error:
        ATENT(Threat("l2", 1.0), **method).calibrate(model, x, y, **given)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="needs inputs, got none"):
        ATENT(Threat("l2", 1.0)).calibrate(model, x[:0], y[:0])


def test_a_method_that_is_not_calibrated_yet_does_not_train():
    model, (x, y) = network(), batch()
    for method in (
        ATENT(Threat("l2", 1.0), calibrated=True),
        ATENT(Threat("l2", 1.0), calibrated="noise", mode="eval"),
    ):
        for call in (method.backward, method.adversary, AWP(method).backward):
            with pytest.raises(ValueError, match="not calibrated yet: use calibrate"):
                call(model, x, y, rng=stream())


# -- in the loop


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings("digits", limit=300))


ASKING = ATENT(Threat("l2", 1.0), steps=3, step_size=0.4, calibrated=True)


def trained(data, path=None, method=ASKING, said=None, **more):
    torch.manual_seed(3)
    model = build("digits_cnn", shape=data.shape)
    settings = TrainSettings(epochs=2, batch_size=64, validate_limit=20, validate_attack="none", save_minutes=0)
    say = {} if said is None else {"say": said.append}
    return fit(model, data, method, settings=settings, run=path, progress=False, **say, **more)


def test_a_training_adopts_what_it_finds_and_reports_it(digits, tmp_path):
    said = []
    fitted = trained(digits, tmp_path / "run", said=said)
    config = json.loads((tmp_path / "run/config.json").read_text())
    found = config["about"]["calibration"]
    assert found["median"] == pytest.approx(1.0, rel=0.01)
    assert found["q10"] < found["median"] < found["q90"]
    assert found["n"] == 128
    assert config["about"]["chain"]["anchor_weight"] == pytest.approx(found["value"])
    assert config["method"]["calibrated"] is True
    (line,) = [s for s in said if s.startswith("found")]
    assert line.startswith(f"found   gamma {found['value']:.4g}")
    # the same training with the value given
    given = trained(digits, method=adopt(ASKING, found))
    assert given.history[1]["loss"] == fitted.history[1]["loss"]
    assert given.history[1]["distance_median"] == fitted.history[1]["distance_median"]


def test_a_resumed_training_keeps_what_was_found(digits, tmp_path, monkeypatch):
    whole = trained(digits, tmp_path / "whole")
    real, calls = ATENT.backward, []

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ATENT, "backward", dying)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            trained(digits, tmp_path / "broken")
    said = []
    resumed = trained(digits, tmp_path / "broken", said=said, resume=True)
    assert not [s for s in said if s.startswith("found")]
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert resumed.history[1]["loss"] == whole.history[1]["loss"]


def test_around_it_awp_is_calibrated_too(digits, tmp_path):
    trained(digits, tmp_path / "run", method=AWP(ASKING))
    assert json.loads((tmp_path / "run/config.json").read_text())["about"]["calibration"]["setting"] == "gamma"


def test_noise_is_adopted_in_the_place_of_a_temperature():
    method = ATENT(Threat("l2", 1.0), temperature=0.1, calibrated="noise")
    adopted = adopt(method, {"setting": "noise", "value": 0.2})
    assert (adopted.noise, adopted.temperature, adopted.calibrated) == (0.2, None, False)
    assert adopt(method, None) is method


def test_the_command_line_asks_for_it():
    for word, value in {"true": True, "false": False, "noise": "noise"}.items():
        made = train_job("digits-l2-atent", "--method.calibrate", word)
        assert made.method.calibrated == value


def test_a_recipe_that_projects_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["train", "digits-l2-atent", "--method.calibrate", "true", "--runs", str(tmp_path), "--quiet"]) == 2
    assert "projection 'every' projects the samples" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
