"""Optimizers and methods of the user: their settings arrive as given, and a state that no file restores is refused."""

import dataclasses
import json
import re
import sys
from collections import deque

import pytest
import torch

from atent.data import from_tensors
from atent.experiments import recipes
from atent.experiments.recipe_files import read_recipe
from atent.methods import Standard
from atent.optim import Optimizer, build
from atent.train import TrainSettings, fit


class Plain(torch.optim.Optimizer):
    """Gradient descent."""

    def __init__(self, params, lr, last=1):
        super().__init__(params, {"lr": lr, "last": last})
        self.params = [p for group in self.param_groups for p in group["params"]]
        self.sizes = None
        self.last = last

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.sizes = [p.numel() for p in self.params]
        for p in self.params:
            self.remember(p)
            p -= 0.1 * p.grad
        return loss

    def remember(self, p):
        self.state[p].setdefault("count", 0)
        self.state[p]["count"] += 1


class Recent(Plain):
    """The recent gradients, in a collection that no checkpoint restores."""

    def remember(self, p):
        self.state[p].setdefault("recent", deque(maxlen=self.last)).append(p.grad.clone())


class Counts(Plain):
    """A number of steps, and a sum, that no state contains."""

    steps = 0

    def remember(self, p):
        self.steps += 1
        self.total = getattr(self, "total", 0.0) + p.grad.sum()


@dataclasses.dataclass(frozen=True)
class Growing(Standard):
    """Its state gets an entry in the first step."""

    odd: bool = True

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        state["entry"] = range(2) if self.odd else torch.ones(2)
        return super().loss(model, x, y, aux, progress=progress, state=state)


class Twice(Plain):
    """Asks for the gradient twice, as SAM does."""

    @torch.no_grad()
    def step(self, closure=None):
        self.zero_grad()
        for _ in range(2):
            with torch.enable_grad():
                loss = closure()
            for p in self.params:
                p -= 0.1 * p.grad
            self.zero_grad()
        return loss


def images():
    x, y = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
    return from_tensors(x[:16], y[:16], x[16:], y[16:], validation=8)


def trained(run, method=None, **given):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    settings = TrainSettings(epochs=1, batch_size=4, device="cpu")
    return fit(net, images(), method or Standard(), settings=settings, run=run, progress=False, **given)


@pytest.fixture
def named(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_optimizers", sys.modules[__name__])
    return lambda cls, **args: Optimizer(f"own_optimizers:{cls.__name__}", args=args)


def test_a_whole_number_stays_one(named, tmp_path):
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        '[data]\nname = "digits"\n[model]\nname = "mlp"\n[method]\nname = "Standard"\n'
        '[optimizer]\nname = "own_optimizers:Plain"\nargs = { last = 3 }\n'
    )
    found = recipes.job(read_recipe(str(recipe)), str(recipe)).optimizer.args["last"]
    assert (found, type(found)) == (3, int)


def test_a_state_that_no_checkpoint_restores_is_refused_before_one_is_replaced(named, tmp_path):
    with pytest.raises(ValueError, match=r"the optimizer's state .* \(state\.0\.recent is a deque\): use") as caught:
        trained(tmp_path / "run", optimizer=named(Recent))
    assert "\n" not in str(caught.value)
    # The checkpoint of step 0 remains.
    assert torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)["mark"]["step"] == 0
    trained(None, optimizer=named(Recent))


def test_a_methods_state_too(tmp_path):
    with pytest.raises(ValueError, match=r"the method's state .* \(entry is a range\): use"):
        trained(tmp_path / "run", Growing())
    trained(tmp_path / "other", Growing(odd=False))


def test_what_an_optimizer_keeps_outside_its_state_is_reported(named, capsys):
    net = torch.nn.Linear(4, 2)
    build(named(Plain), net)
    build(Optimizer("torch.optim:LBFGS"), net)
    assert not capsys.readouterr().err
    build(named(Counts), net)
    assert "Counts keeps steps, total outside its state" in capsys.readouterr().err


def test_a_list_reaches_the_optimizer_and_comes_back(tmp_path):
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        '[data]\nname = "digits"\n[model]\nname = "mlp"\n[method]\nname = "Standard"\n'
        '[optimizer]\nname = "torch.optim:Adam"\nargs = { betas = [0.5, 0.6] }\n'
    )
    given = recipes.job(read_recipe(str(recipe)), str(recipe)).optimizer
    net = torch.nn.Linear(4, 2)
    assert build(given, net).param_groups[0]["betas"] == (0.5, 0.6)
    saved = json.loads(json.dumps(dataclasses.asdict(given)))
    again = recipes.job({"method": {"name": "Standard"}, "optimizer": saved}, None).optimizer
    assert again == given


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "optimizer.args.a = { b = 1 }",
            "args.a: should be a valid integer or number or boolean or string or array,",
        ),
        (
            "optimizer.args.a = [1, [1]]",
            "args.a.1: should be a valid integer or number or boolean or string, got",
        ),
        ('train.threads = "x"', "train.threads: should be a valid integer or 'auto', got 'x'"),
        ('evaluate.limit = "x"', "evaluate.limit: should be a valid integer or 'all', got 'x'"),
    ],
)
def test_a_value_of_another_kind_is_one_line_with_all_kinds(tmp_path, setting, line):
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'data.name = "digits"\nmodel.name = "mlp"\nmethod.name = "Standard"\noptimizer.name = "torch.optim:Adam"\n'
        f"{setting}\n"
    )
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        recipes.job(read_recipe(str(recipe)), str(recipe))
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_cannot_step_is_refused_before_a_run_folder_is_made(tmp_path):
    three = Optimizer("torch.optim:Adam", args={"betas": (0.9, 0.95, 0.99)})
    with pytest.raises(ValueError, match=r"^optimizer torch\.optim:Adam raised ValueError: .* in its first step$"):
        trained(tmp_path / "run", optimizer=three)
    assert not (tmp_path / "run").exists()


def test_a_step_that_asks_for_two_gradients_is_not_refused(named):
    trained(None, optimizer=named(Twice))


def test_an_optimizer_of_sparse_gradients_alone_is_not_refused():
    net = torch.nn.Embedding(4, 2, sparse=True)
    made = build(Optimizer("torch.optim:SparseAdam", lr=0.01), net)
    net(torch.tensor([1])).sum().backward()
    made.step()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "LBFGS", "NAdam", "RMSprop", "Rprop", "Adafactor"])
def test_the_trial_of_a_step_leaves_network_and_random_numbers(name):
    net = torch.nn.Linear(4, 2)
    before, state = [p.detach().clone() for p in net.parameters()], torch.get_rng_state()
    made = build(Optimizer(f"torch.optim:{name}", lr=0.01), net)
    assert all(map(torch.equal, net.parameters(), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert not made.state
    assert all(p.grad is None for p in net.parameters())
