"""A robust classifier in scikit-learn's manner: its checks, pipelines and searches, and what it says of robustness."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from atent import Threat
from atent.attacks import PGD
from atent.evaluate import evaluate
from atent.integrations.sklearn import RobustClassifier
from atent.methods import PGDAT

QUICK = {"epochs": 4, "lr": 0.02, "batch_size": 64, "method_params": {"steps": 1}}
SKIPPED = {
    "check_array_api_input": "arrays of other libraries are for SCIPY_ARRAY_API alone",
    "check_classifier_data_not_an_array": "needs pandas",
}
"""Checks that scikit-learn itself leaves out here, with the reason."""


@pytest.fixture(scope="module")
def iris():
    x, y = load_iris(return_X_y=True)
    return x, load_iris().target_names[y]


@pytest.fixture(scope="module")
def fitted(iris):
    return RobustClassifier(eps=0.2, random_state=0, **QUICK | {"epochs": 10}).fit(*iris)


def test_it_passes_the_checks_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(RobustClassifier(validation_fraction=0, **QUICK), on_fail=None, on_skip=None)
    failed = {row["check_name"]: row["exception"] for row in found if row["status"] == "failed"}
    assert not failed
    assert {row["check_name"] for row in found if row["status"] == "skipped"} <= set(SKIPPED)
    assert sum(row["status"] == "passed" for row in found) >= 50


def test_labels_are_those_of_the_user(iris, fitted):
    x, y = iris
    assert fitted.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert set(fitted.predict(x)) <= set(y)
    assert fitted.score(x, y) > 0.8
    assert (fitted.predict_proba(x).argmax(1) == np.searchsorted(fitted.classes_, fitted.predict(x))).all()
    assert fitted.n_features_in_ == 4


def test_the_seed_decides(iris, fitted):
    """The same seed gives the same bits, whatever torch's global generator; it is left as it was."""
    x, y = iris
    torch.manual_seed(3)
    before = torch.get_rng_state()
    again = clone(fitted).fit(x, y)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))
    other = clone(fitted).set_params(random_state=1).fit(x, y)
    assert not np.array_equal(other.predict_proba(x), fitted.predict_proba(x))
    loaded = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(loaded.predict_proba(x), fitted.predict_proba(x))


def test_a_robust_score_needs_an_attack(iris, fitted):
    """Before: the clean accuracy was returned."""
    x, y = iris
    with pytest.raises(ValueError, match="at least one attack"):
        fitted.robust_score(x, y, [])


def test_robust_score_is_that_of_evaluate(iris, fitted):
    x, y = iris
    found = fitted.robust_score(x, y, "PGD(steps=5)", seed=2)
    labels = torch.from_numpy(np.searchsorted(fitted.classes_, y))
    inputs = torch.tensor(x, dtype=torch.float32)
    threat = Threat("linf", 0.2, box=(float(inputs.min()), float(inputs.max())))
    assert found == evaluate(fitted.network_, inputs, labels, [PGD(threat, steps=5)], seed=2).worst["value"]
    assert found <= fitted.score(x, y)
    assert fitted.robust_score(x, y, ["FGSM", PGD(threat, steps=5)], seed=2) <= found
    assert fitted.robust_score(x, y, "PGD(steps=5)", eps=0) == fitted.score(x, y)
    assert fitted.robust_score(x, y, "PGD(steps=5)", eps=2.0) < found
    assert fitted.robust_score(x[:30], y[:30]) <= fitted.robust_score(x[:30], y[:30], "PGD(steps=5)")


def test_what_is_certified_no_attack_changes(iris, fitted):
    x, _ = iris
    proved = fitted.certify(x)
    assert 0 < proved.sum() < len(x)
    predicted = fitted.predict(x)
    assert fitted.robust_score(x[proved], predicted[proved], "PGD(steps=20, restarts=2)") == 1.0
    assert fitted.certify(x, 0.01).sum() >= proved.sum() >= fitted.certify(x, 0.4).sum()
    assert not fitted.certify(x, 0.2, method="ibp")[~proved].any()


class Threshold(torch.nn.Module):
    """Class 1 above the value 1.05."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 2)
        with torch.no_grad():
            self.line.weight.copy_(torch.tensor([[-20.0], [20.0]]))
            self.line.bias.copy_(torch.tensor([21.0, -21.0]))

    def forward(self, x):
        return self.line(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_certificate_reaches_beyond_the_training_data(norm):
    """The inputs of the training end at 1, those of the ball of 0.1 around 1 at 1.1."""
    x, y = np.linspace(0, 1, 41)[:, None], np.arange(41) % 2
    how = {"norm": norm, "eps": 0.1, "network": Threshold(), "epochs": 1, "lr": 1e-9, "validation_fraction": 0}
    made = RobustClassifier("standard", **how).fit(x, y)
    assert made.predict([[1.0], [1.08]]).tolist() == [0, 1]
    assert made.certify([[1.0], [0.9]]).tolist() == [False, True]
    assert made.certify([[1.0]], 0.04).tolist() == [True]
    # Nothing lies beyond a box that was given.
    limited = RobustClassifier("standard", box=(0.0, 1.0), **how).fit(x, y)
    assert limited.certify([[1.0]]).tolist() == [True]


def test_samples_outside_the_box(iris):
    """A box from the data grows with what is evaluated; a given one is a limit."""
    x, y = iris
    learned = RobustClassifier(eps=0.2, random_state=0, **QUICK).fit(x[:140], y[:140])
    wide = x.copy()
    wide[0, 0] = 30.0
    assert 0 <= learned.robust_score(wide, y, "FGSM") <= 1
    given = RobustClassifier(eps=0.2, random_state=0, box=(0.0, 10.0), **QUICK).fit(x, y)
    assert given.threat_.box == (0.0, 10.0)
    with pytest.raises(ValueError, match="outside the box"):
        given.robust_score(wide, y, "FGSM")
    with pytest.raises(ValueError, match=r"values run from .* must be in \[0, 1\]"):
        RobustClassifier(box=(0.0, 1.0)).fit(x, y)


def test_it_works_where_scikit_learn_puts_it(iris):
    x, y = iris
    pipe = make_pipeline(StandardScaler(), RobustClassifier(random_state=0, **QUICK))
    assert cross_val_score(pipe, x, y, cv=2).mean() > 0.6

    def robust(made, x, y):
        return made[-1].robust_score(made[:-1].transform(x), y, "PGD(steps=3)", eps=0.3)

    name = "robustclassifier__eps"
    search = GridSearchCV(pipe, {name: [0.05, 0.3]}, scoring=robust, cv=2).fit(x, y)
    assert search.best_params_[name] in (0.05, 0.3)
    assert (search.cv_results_["mean_test_score"] > 0.2).all()


@pytest.mark.parametrize("channels", [False, True])
def test_images(channels):
    x, y = load_digits(return_X_y=True)
    x, y = x.reshape((-1, 1, 8, 8) if channels else (-1, 8, 8))[:300] / 16, y[:300]
    settings = QUICK | {"epochs": 5, "lr": 5e-3}
    made = RobustClassifier("pgdat", eps="1/10", random_state=0, **settings).fit(x[:250], y[:250])
    assert made.score(x[250:], y[250:]) > 0.5
    assert made.robust_score(x[250:], y[250:], "FGSM") <= made.score(x[250:], y[250:])
    assert made.certify(x[250:], 1e-3).any()
    assert "conv1" in dict(made.network_[1].named_children())
    with pytest.raises(ValueError, match="samples have shape"):
        made.predict(np.zeros((2, 1, 8, 9) if channels else (2, 8, 9)))


def test_networks_and_methods_of_the_user(iris):
    x, y = iris
    own = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    begun = own[0].weight.clone()
    made = RobustClassifier(network=own, random_state=0, **QUICK).fit(x, y)
    assert torch.equal(own[0].weight, begun)
    assert not torch.equal(made.network_[0].weight, begun)
    function = RobustClassifier("standard", network=lambda shape, classes: nn.Linear(*shape, classes), epochs=1)
    assert isinstance(function.fit(x, y).network_, nn.Linear)
    named = RobustClassifier("PGDAT", network="two_class", eps=0.1, epochs=1).fit(x[:, :2], y)
    assert named.network_[1].fc2.out_features == 3

    class Single(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    single = RobustClassifier("standard", network=Single(4, 3), epochs=1).fit(x, y)
    with torch.no_grad():
        expected = single.network_(torch.tensor(x, dtype=torch.float32)).double().softmax(1)
    assert np.allclose(single.predict_proba(x), expected, rtol=0, atol=1e-5)
    method = PGDAT(Threat("l2", 0.3, box=(0.0, 8.0)), steps=2)
    threat = RobustClassifier(method, epochs=1).fit(x, y).threat_
    assert threat == method.threat


@pytest.mark.parametrize(
    ("change", "x", "y", "said"),
    [
        ({}, np.ones((6, 2)), [1] * 6, "y has one class, .*1.*: at least 2"),
        ({}, np.full((4, 2), np.nan), [0, 1, 0, 1], "NaN"),
        ({}, np.ones((4, 2, 2, 2, 2)), [0, 1, 0, 1], "X has shape"),
        ({}, np.ones((4, 2)), [0.1, 0.2, 0.3, 0.4], "continuous"),
        ({"method": "atnet"}, np.eye(4), [0, 1, 0, 1], "did you mean 'ATENT'"),
        ({"method": "acl"}, np.eye(4), [0, 1, 0, 1], "ACL trains without labels"),
        ({"eps": -1}, np.eye(4), [0, 1, 0, 1], "eps must be"),
        ({"validation_fraction": 1}, np.eye(4), [0, 1, 0, 1], "validation_fraction must lie in"),
        ({"method_params": {"stepz": 1}}, np.eye(4), [0, 1, 0, 1], "did you mean 'steps'"),
        (
            {"method_params": {"threat": Threat("l2", 1.0)}},
            np.eye(4),
            [0, 1, 0, 1],
            "method_params contain a threat, .*l2",
        ),
        (
            {"method": PGDAT(Threat("l2", 0.1)), "method_params": {"steps": 2}},
            np.eye(4),
            [0, 1, 0, 1],
            "no effect on a PGDAT",
        ),
        ({"method": "acl"}, np.eye(4) * 3, [0, 1, 0, 1], "ACL trains without labels"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, x, y, said):
    with pytest.raises(ValueError, match=said):
        RobustClassifier(**{"epochs": 1} | change).fit(x, y)


def test_what_is_not_supported_is_refused(iris, fitted):
    x, y = iris
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        RobustClassifier().fit(csr_matrix(x), y)
    with pytest.raises(TypeError, match="sample_weight"):
        RobustClassifier().fit(x, y, sample_weight=np.ones(len(y)))
    with pytest.raises(NotFittedError):
        RobustClassifier().certify(x)
    with pytest.raises(ValueError, match=r"y has the label .*rose"):
        fitted.robust_score(x[:2], ["setosa", "rose"], "FGSM")
    with pytest.raises(ValueError, match="y has shape"):
        fitted.robust_score(x[:2], ["setosa"], "FGSM")
    # Before: a TypeError of numpy, as words and numbers have no order.
    for labels in ([0, 1], [0.0, None], np.array(["setosa", 1], dtype=object)):
        with pytest.raises(ValueError, match=r"y has the label (0|0\.0|1): give 2 labels among the 3"):
            fitted.robust_score(x[:2], labels, "FGSM")
