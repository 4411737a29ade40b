"""Classes of settings show their fields as their signature, and stay ordinary dataclasses."""

import copy
import dataclasses
import inspect
import pickle
import pydoc
from dataclasses import dataclass

import pytest

import atent
from atent.attacks import ATTACKS, PGD
from atent.certify import CERTIFIERS
from atent.evaluate import evaluate
from atent.methods import METHODS, Method
from atent.optim import Optimizer
from atent.threat import Threat
from atent.train import TrainSettings

CLASSES = {**ATTACKS, **METHODS, "Threat": Threat, "Optimizer": Optimizer, "TrainSettings": TrainSettings}


@dataclass(frozen=True)
class Longer(PGD):
    """A subclass in a file of the user."""

    patience: int = 3


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_the_parameters_are_the_fields(cls):
    given = inspect.signature(cls).parameters
    fields = [f for f in dataclasses.fields(cls) if f.init]
    assert list(given) == [f.name for f in fields]
    for field in fields:
        if field.default is not dataclasses.MISSING:
            assert given[field.name].default == field.default


def test_certifiers_have_parameters_of_their_own():
    assert all("args" not in inspect.signature(certifier).parameters for certifier in CERTIFIERS.values())


def test_the_signature_of_an_instance_is_that_of_its_call():
    assert list(inspect.signature(PGD(Threat("linf", 0.1))).parameters)[:3] == ["model", "x", "y"]
    assert list(inspect.signature(Method()).parameters)[:3] == ["model", "x", "y"]


def test_the_package_evaluate_has_the_signature_of_its_function():
    assert inspect.signature(atent.evaluate) == inspect.signature(evaluate)


def test_help_shows_the_parameters():
    assert "step_size: 'float | None' = None" in pydoc.plain(pydoc.render_doc(PGD))


def test_subclasses_copies_and_pickles():
    assert list(inspect.signature(Longer).parameters)[-1] == "patience"
    attack = Longer(Threat("linf", 0.1), steps=5, patience=2)
    for other in (pickle.loads(pickle.dumps(attack)), copy.deepcopy(attack), dataclasses.replace(attack)):
        assert other == attack
    assert dataclasses.replace(attack, steps=7).steps == 7
