"""Classes and functions of the user in every valid style are accepted, and work as those of this library."""

import copy
import dataclasses
import functools
import importlib
import importlib.metadata
import pickle
import sys
import sysconfig
from dataclasses import dataclass
from functools import cached_property, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from atent import origins
from atent.attacks import ATTACKS, PGD, Attack
from atent.cli.user_code import place_of_error, raised_by_user
from atent.contracts import kind_of
from atent.methods import METHODS, Method
from atent.registry import first_line
from atent.threat import Threat
from atent.train.fingerprint import difference

LINF = Threat("linf", 0.1)


def _search(shift, oracle, x, y, streams):
    return oracle.logits(x, y)[:, :1, None, None].sign() * shift + x


def _search_alone(oracle, x, y, streams):
    return x


class Found:
    def __call__(self, oracle, x, y, streams):
        return x


class Partial(Attack):
    passes = 1
    search = functools.partial(_search, 0.05)


class PartialMethod(Attack):
    passes = 1

    def _at(self, shift, oracle, x, y, streams):
        return x + shift * self.threat.eps

    search = partialmethod(_at, 0.5)


class CallableObject(Attack):
    passes = np.int64(1)
    search = Found()


class Cached(Attack):
    @cached_property
    def passes(self):
        return 4

    @staticmethod
    def search(oracle, x, y, streams):
        return x


class Counted:
    def __get__(self, instance, owner=None):
        return 5


class Descriptor(Attack):
    passes = Counted()
    search = staticmethod(_search_alone)


class Annotated(Attack):
    norms: tuple[str, ...] = ("linf",)
    passes: int = 2
    _kept: dict

    def search(self, oracle, x, y, streams, **options):
        return x


class Constructed(PGD):
    def __init__(self, *args, **given):
        super().__init__(*args, **given)
        object.__setattr__(self, "_seen", [])


@dataclass(frozen=True, kw_only=True)
class Keyword(PGD):
    steps: int = 4
    extra: str = "a"


class PartialLoss(Method):
    loss = functools.partial(lambda weight, model, x, y, aux, **_: (weight * cross_entropy(model(x), y), {}), 2.0)


STYLES = [Partial, PartialMethod, CallableObject, Cached, Descriptor, Annotated, Constructed, Keyword]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_an_attack(style):
    assert ATTACKS.find(f"{__name__}:{style.__name__}") is style
    attack = style(LINF)
    pickled = pickle.loads(pickle.dumps(attack))
    assert attack == pickled == copy.deepcopy(attack) == dataclasses.replace(attack)
    x, y = torch.rand(3, 1, 4, 4), torch.arange(3)
    found = attack.run(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), x, y)
    assert found.x_adv.shape == x.shape
    assert attack.passes >= 1


def test_a_method_with_a_partial():
    assert METHODS.find(f"{__name__}:PartialLoss") is PartialLoss
    metrics = PartialLoss().backward(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(3, 16), torch.arange(3))
    assert list(metrics) == ["loss"]


def test_a_constructor_with_settings_of_its_own_is_refused():
    class Takes(PGD):
        def __init__(self, threat, tries=3):
            super().__init__(threat, steps=tries)

    with pytest.raises(ValueError, match="Takes defines __init__"):
        Takes(LINF)


def test_a_redeclared_field_needs_the_decorator():
    class Longer(PGD):
        steps: int = 100

    with pytest.raises(ValueError, match="Longer declares steps"):
        Longer(LINF)


@pytest.mark.parametrize("kind", [staticmethod, classmethod, lambda function: partialmethod(function, 1)])
def test_passes_that_is_a_method_is_refused(kind):
    cls = type("Method", (Attack,), {"passes": kind(lambda *_: 3), "search": staticmethod(_search_alone)})
    assert "passes of Method is a" in (ATTACKS.flaw(cls) or "")


@pytest.mark.parametrize("value", [cached_property(len), partialmethod(len), len, functools.partial(len), len.__call__])
def test_any_value_has_a_kind(value):
    assert kind_of(value)


def _built():
    return nn.Linear(2, 2)


def test_sources_of_partials_instances_and_cached_functions():
    expected = origins.sources_of([_built])
    assert list(expected) == [__name__]
    for entry in (functools.partial(functools.partial(_built)), functools.cache(_built), Found()):
        assert origins.sources_of([entry]) == expected
    assert origins.sources_of([[].append, functools.partial(len), torch.nn.Linear]) == {}


def test_an_instance_and_a_class_of_main_without_a_file():
    typed = type("Typed", (), {"__module__": "__main__"})
    assert origins.sources_of([typed, typed()]) == {}


def test_the_environment_is_read_once(monkeypatch, tmp_path):
    seen, read = [], importlib.metadata.packages_distributions
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: seen.append(sys.path[0]) or read())
    # Folders that no other test has asked for.
    monkeypatch.syspath_prepend(str(tmp_path / "one"))
    for _ in range(2):
        origins.sources_of([Partial, Cached, Found, Keyword, pytest.Item, pytest.Module])
        assert origins.version_of("torch.nn").startswith("torch ")
        assert origins.version_of("no_such_module") is None
    assert seen == [sys.path[0]]


def test_a_package_is_found_where_modules_are_looked_for_now(monkeypatch, tmp_path):
    about = tmp_path / "theirs_here-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs-here\nVersion: 1.2\n")
    (about / "top_level.txt").write_text("theirs_here\n")
    assert origins.version_of("theirs_here") is None
    monkeypatch.syspath_prepend(str(tmp_path))
    assert origins.version_of("theirs_here.part") == "theirs-here 1.2"


@pytest.mark.parametrize("editable", [True, False])
def test_the_source_of_an_editable_installation_counts(editable, monkeypatch, tmp_path):
    name = f"theirs_{'edited' if editable else 'copied'}"
    site, source = tmp_path / "site", tmp_path / "source"
    about = site / f"{name}-1.2.dist-info"
    about.mkdir(parents=True)
    source.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (about / "top_level.txt").write_text(f"{name}\n")
    ((source if editable else site) / f"{name}.py").write_text("def net():\n    pass\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(source))
    module = importlib.import_module(name)
    assert origins.version_of(name) == f"{name} 1.2"
    assert list(origins.sources_of([module.net])) == ([name] if editable else [])


@pytest.mark.parametrize("folder", ["venv/lib/python3/site-packages", "usr/lib/python3/dist-packages"])
def test_a_line_of_a_package_is_not_a_line_of_the_user(tmp_path, folder):
    library = tmp_path / folder / "theirs.py"
    library.parent.mkdir(parents=True)
    library.write_text("def fail(oracle, x, y, streams):\n    raise RuntimeError('theirs')\n")
    assert not library.is_relative_to(Path(sysconfig.get_path("purelib")))
    names = {}
    exec(compile(library.read_text(), library, "exec"), names)

    class Calls(Attack):
        passes = 1

        def search(self, oracle, x, y, streams):
            return names["fail"](oracle, x, y, streams)

    with pytest.raises(RuntimeError) as caught:
        Calls(LINF).run(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 4, 4), torch.arange(2))
    for place in (place_of_error(caught.value), raised_by_user(caught.value)):
        assert place is not None
        assert place.startswith(f"{Path(__file__).name}, line ")
        assert place.endswith(", in search")


def test_an_error_whose_first_line_announces_the_second():
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 2).load_state_dict({"weight": torch.zeros(2, 2)})
    line = first_line(caught.value)
    assert line.startswith("RuntimeError: Error(s) in loading state_dict for Linear:")
    assert line.endswith('Missing key(s) in state_dict: "bias".')
    assert first_line(RuntimeError(240 * "x")) == f"RuntimeError: {240 * 'x'}"
    assert len(first_line(RuntimeError(2000 * "x"))) < 300
    assert len(first_line(RuntimeError("several:\n" + 200 * "word "))) < 200
    assert [first_line(RuntimeError(text)) for text in ("", "a\nb", "a:")] == [
        "RuntimeError", "RuntimeError: a", "RuntimeError: a",
    ]  # fmt: skip


def test_an_error_lists_only_some_of_many_edited_modules():
    now = {"code": {f"module{i}": "new" for i in range(30)}, "config": "{}", "samples": None}
    line = difference({**now, "code": dict.fromkeys(now["code"], "old")}, now, PartialLoss())
    assert "module0, module1, module2, module3 and 26 others have changed" in line
    assert len(line) < 300
    one = difference({**now, "code": {"module0": "old"}}, now, PartialLoss())
    assert "code: module0 has changed since then" in one
