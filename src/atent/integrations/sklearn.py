"""Robust training as a classifier of scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from atent.attacks import ATTACKS, Attack
from atent.attacks.spec import parse
from atent.certify import verified
from atent.certify.bounds import Method as BoundMethod
from atent.checks import check_number
from atent.data.checks import floats
from atent.data.split import Data, Split, split, stratified
from atent.evaluate import evaluate
from atent.guard import ask, guard
from atent.messages import note, unknown
from atent.methods import METHODS, Method
from atent.models import build
from atent.optim import Optimizer
from atent.precision import twin
from atent.threat import Threat
from atent.threat import radius as radius_of
from atent.train import TrainSettings, fit

Shape = tuple[int, ...]
Builder = Callable[[Shape, int], nn.Module]
_BATCH = 1000


class RobustClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Robust training of a network as a classifier of scikit-learn.

    X is a table (n, d), or images (n, h, w) or (n, c, h, w), of finite numbers in any range; ``eps`` is in the units of
    X. Columns are scaled inside the network, so the threat stays in these units. Results are the same for the same
    ``random_state``, data and settings.

    Parameters
    ----------
    method
        A training method by name, in any case ("atent", "trades", "pgdat", "standard" ...), or a `Method`, whose threat
        takes precedence over ``norm``, ``eps`` and ``box``.
    norm
        Norm of the threat: "linf", "l2", or another that the method takes.
    eps
        Radius of the threat in the units of X, above 0; a number or a string such as "8/255".
    method_params
        Further settings of the method, such as ``{"steps": 5}``. Default: the method's own.
    network
        Name of a built-in network; a module, which is copied; or a function of the shape of one sample and the number
        of classes that returns a module. Default: two hidden layers of 128 units for tables; for images digits_cnn or
        small_cnn, as the size allows, else the former.
    box
        (lowest, highest) value of an input. Default: those of the training data; for samples outside, attacks use a
        wider box.
    epochs
        Number of passes over the training set.
    batch_size
        Samples per step.
    optimizer
        Name of an optimizer of this library. Default: "Adam".
    lr
        Learning rate.
    validation_fraction
        Share of the training set on which the best epoch is selected, by robust accuracy, in [0, 1). With 0, and if
        the share has fewer samples than there are classes, the last epoch is used.
    device
        "cpu", "cuda" or "auto".
    random_state
        Seed of initial weights, sample order and adversary: an integer, a RandomState or None.
    verbose
        Whether each epoch is reported on stderr.

    Attributes
    ----------
    classes_
        The labels, sorted.
    network_
        The trained network, from inputs (n, d) or (n, c, h, w) to logits, in eval mode.
    threat_
        The threat of the training, with the box.
    history_
        A row of metrics for each epoch.
    n_features_in_
        The second dimension of X.

    Examples
    --------
    >>> import numpy as np
    >>> from atent.integrations.sklearn import RobustClassifier
    >>> y = np.arange(100) % 2
    >>> X = np.random.default_rng(0).normal(size=(100, 2)) + 6 * y[:, None]
    >>> classifier = RobustClassifier("pgdat", eps=0.5, epochs=3, random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.9, classifier.robust_score(X, y, "PGD(steps=5)") > 0.9
    (True, True)
    """

    def __init__(
        self,
        method: str | Method = "atent",
        norm: str = "linf",
        eps: float | str = 0.1,
        *,
        method_params: Mapping[str, Any] | None = None,
        network: str | nn.Module | Builder | None = None,
        box: tuple[float, float] | None = None,
        epochs: int = 30,
        batch_size: int = 32,
        optimizer: str = "Adam",
        lr: float = 2e-3,
        validation_fraction: float = 0.1,
        device: str = "cpu",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.method, self.norm, self.eps, self.method_params = method, norm, eps, method_params
        self.network, self.box, self.epochs, self.batch_size = network, box, epochs, batch_size
        self.optimizer, self.lr, self.validation_fraction = optimizer, lr, validation_fraction
        self.device, self.random_state, self.verbose = device, random_state, verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # ---- training

    def fit(self, X: Any, y: Any) -> RobustClassifier:
        """Train on X (n, ...) and labels y (n,); sample weights are not supported.

        Raises
        ------
        ValueError
            In one line: for inputs that are not finite numbers, fewer than two classes, and settings out of range.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_.tolist()[0]!r}: at least 2 classes are needed")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        inputs = self._shaped(X)
        self.shape_ = inputs.shape[1:]
        method, self.threat_ = self._method(inputs)
        data, chosen = self._data(inputs, labels, seed)
        settings = TrainSettings(
            epochs=self.epochs, batch_size=self.batch_size, seed=seed, device=self.device,
            select="auto" if chosen else "last", validate_every=1 if chosen else self.epochs,
            validate_attack="PGD(steps=10)" if chosen else "none", validate_limit=500 if chosen else 1, watch="off",
        )  # fmt: skip
        fitted = fit(
            self._network(inputs, seed), data, method, optimizer=Optimizer(self.optimizer, lr=self.lr),
            settings=settings, threat=self.threat_, progress=False, report=self._report if self.verbose else None,
        )  # fmt: skip
        self.network_, self.history_ = fitted.model, fitted.history
        return self

    def _shaped(self, X: np.ndarray) -> np.ndarray:
        """Tables unchanged, images (n, h, w) with one channel added."""
        if X.ndim == 3:
            X = X[:, None]
        if X.ndim not in (2, 4):
            raise ValueError(f"X has shape {X.shape}: give a table (n, d), or images (n, h, w) or (n, c, h, w)")
        return np.array(X, dtype=np.float32, order="C")

    def _method(self, inputs: np.ndarray) -> tuple[Method, Threat]:
        """The method, and the threat of the training."""
        box = _range(inputs) if self.box is None else self.box
        if isinstance(self.method, Method):
            threat = self.method.threat or Threat(self.norm, self.eps, box)  # type: ignore[arg-type]
            _labelled(self.method)
            if self.method_params:
                raise ValueError(
                    f"method_params have no effect on a {type(self.method).__name__} object: set its fields"
                )
            floats("X", inputs, threat.box)
            return self.method, threat
        names = {name.lower(): name for name in METHODS}
        if not isinstance(self.method, str) or self.method.lower() not in names:
            raise ValueError(unknown("method", str(self.method), METHODS))
        kind, threat = METHODS[names[self.method.lower()]], Threat(self.norm, self.eps, box)  # type: ignore[arg-type]
        _labelled(kind)
        floats("X", inputs, threat.box)
        settings = dict(self.method_params or {})
        if "threat" in settings:
            raise ValueError(f"method_params contain a threat, {settings['threat']}: set norm, eps and box instead")
        settings |= {"threat": threat} if any(f.name == "threat" for f in fields(kind)) else {}
        return kind(**settings), threat

    def _data(self, inputs: np.ndarray, labels: np.ndarray, seed: int) -> tuple[Data, bool]:
        """The training set as `Data`, and whether a part of it is the validation set."""
        check_number("validation_fraction", self.validation_fraction, 0, 1, below=True)
        classes, n = len(self.classes_), int(self.validation_fraction * len(labels))
        samples = split(inputs, labels, None)
        train, validation = samples, samples
        if classes <= n <= len(labels) - classes:
            rows = stratified(labels, n, (seed,), keep=1, least=1)
            train, validation = samples.take(np.setdiff1d(np.arange(len(labels)), rows)), samples.take(rows)
        box = self.threat_.box
        data = Data(
            "sklearn", classes, tuple(self.shape_), box, train, validation, validation, _about(train, validation)
        )
        return data, train is not samples

    def _network(self, inputs: np.ndarray, seed: int) -> nn.Module:
        """A new network after the scaling of the training data; a module of the user's own without scaling."""
        if isinstance(self.network, nn.Module):
            return copy.deepcopy(self.network)
        shape, classes = tuple(inputs.shape[1:]), len(self.classes_)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.network is None:
                made = _usual(shape, classes)
            elif isinstance(self.network, str):
                made = build(self.network, classes=classes, shape=shape)
            else:
                return self.network(shape, classes)
        return nn.Sequential(_Scaled(inputs), made)

    def _report(self, row: Mapping[str, Any]) -> None:
        note(f"epoch {row['epoch']}: loss {row['loss']:.4f}")

    # ---- prediction

    def _inputs(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False)
        inputs = self._shaped(X)
        if inputs.shape[1:] != self.shape_:
            raise ValueError(f"samples have shape {inputs.shape[1:]}, and the training set had {tuple(self.shape_)}")
        place = next((p.device for p in self.network_.parameters()), torch.device("cpu"))
        return torch.from_numpy(inputs).to(place)

    def _labels(self, y: Any, n: int) -> Tensor:
        labels, number = np.asarray(y), {label: place for place, label in enumerate(self.classes_.tolist())}
        flat = labels.shape == (n,)
        places = [number.get(label, -1) for label in labels.tolist()] if flat else [-1]
        if -1 in places:
            given = f"the label {labels.tolist()[places.index(-1)]!r}" if flat else f"shape {labels.shape}"
            raise ValueError(f"y has {given}: give {n} labels among the {len(number)} of the training set")
        return torch.tensor(places, dtype=torch.int64)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The softmax of the logits, float64 (n, classes), in the order of ``classes_``."""
        inputs = self._inputs(X)
        # In float64 the probabilities of a sample do not depend on its batch.
        network, dtype = twin(self.network_, inputs[:2])
        with torch.no_grad(), guard(network):
            logits = torch.cat([ask(network, part.to(dtype)) for part in inputs.split(_BATCH)])
        found: np.ndarray = logits.double().softmax(1).cpu().numpy()
        return found

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each sample, (n,)."""
        places = self.predict_proba(X).argmax(1)
        found: np.ndarray = self.classes_[places]
        return found

    def _threat(self, inputs: Tensor, eps: float | str | None, *, whole: bool = False) -> Threat:
        """The threat with the radius ``eps``, in a box that contains the inputs if the box was derived from data, with
        ``whole`` and their balls."""
        threat = self.threat_
        low, high = threat.box
        size = threat.eps if eps is None else radius_of(eps, "eps")
        if self.box is None and not (isinstance(self.method, Method) and self.method.threat) and len(inputs):
            # Twice the radius allows for rounding.
            reach = 2.0 * size if whole and isinstance(size, int | float) else 0.0
            low, high = min(low, float(inputs.min())) - reach, max(high, float(inputs.max())) + reach
        return Threat(threat.norm, size, (low, high), threat.allow_large_eps, **threat.extra())

    def robust_score(
        self, X: Any, y: Any, attack: str | Attack | Sequence[str | Attack] = "AutoAttack", *,
        eps: float | str | None = None, seed: int = 0,
    ) -> float:  # fmt: skip
        """The share of samples that remain correctly classified under attack.

        Parameters
        ----------
        X, y
            Samples and true labels, not those of the training set, whose robust accuracy is higher.
        attack
            An attack as a string or object, or several, of which the worst case counts. Default: AutoAttack. An attack
            such as "PGD(steps=20)" is faster, and overestimates robust accuracy.
        eps
            Radius of attacks that are given as strings. Default: that of the training.
        seed
            Seed of the random numbers of the attacks.

        Returns
        -------
        float
            Robust accuracy, in [0, 1].

        Raises
        ------
        ValueError
            In one line: for labels that are not in the training set, samples outside a given ``box``, and unknown
            attacks.
        """
        inputs = self._inputs(X)
        threat = self._threat(inputs, eps)
        several = [attack] if isinstance(attack, str | Attack) else list(attack)
        if not several:
            raise ValueError("robust_score needs at least one attack, got none: score(X, y) is the clean accuracy")
        attacks = [parse(each, threat, ATTACKS) if isinstance(each, str) else each for each in several]
        found = evaluate(self.network_, inputs, self._labels(y, len(inputs)), attacks, seed=seed)
        return float(found.worst["value"])

    def certify(self, X: Any, radius: float | str | None = None, *, method: BoundMethod = "crown") -> np.ndarray:
        """Whether the prediction of each sample is the same for all inputs within ``radius`` of it, bool (n,).

        True is verified by bounds (`atent.certify.verified`), False undecided. A given box cuts the ball, that of the
        training data does not. With ``predict(X) == y`` it gives the verified accuracy.

        Parameters
        ----------
        X
            Samples, as for `predict`.
        radius
            Radius in the norm of the training and the units of X, a number or a string such as "8/255". Default:
            ``eps``.
        method
            Method of the bounds, see `atent.certify.verified`.

        Returns
        -------
        np.ndarray
            bool (n,).

        Raises
        ------
        ValueError
            In one line, for a network with layers that bounds do not support.
        """
        inputs = self._inputs(X)
        # Inputs may lie outside the range of the training data.
        threat = self._threat(inputs, radius, whole=True)
        with torch.no_grad(), guard(self.network_):
            parts = [(part, ask(self.network_, part).argmax(1)) for part in inputs.split(_BATCH)]
            made = [verified(self.network_, part, predicted, threat, method) for part, predicted in parts]
        found: np.ndarray = torch.cat(made).cpu().numpy()
        return found


class _Scaled(nn.Module):
    """(x - mean) / deviation of each column, or of each channel of images, with the statistics of the training data."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, inputs: np.ndarray) -> None:
        super().__init__()
        wide = np.moveaxis(inputs, 1, 0).reshape(inputs.shape[1], -1).astype(np.float64)
        deviation = wide.std(1)
        shape = (-1, *[1] * (inputs.ndim - 2))
        self.register_buffer("mean", torch.tensor(wide.mean(1), dtype=torch.float32).view(shape))
        spread = np.where(deviation > 0, deviation, 1.0)
        self.register_buffer("deviation", torch.tensor(spread, dtype=torch.float32).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def _labelled(method: Method | type[Method]) -> None:
    if not method.labelled:
        kind = method if isinstance(method, type) else type(method)
        raise ValueError(f"{kind.__name__} trains without labels, and a classifier needs them: use another method")


def _usual(shape: Shape, classes: int) -> nn.Module:
    """The default network for samples of a shape."""
    if len(shape) == 3:
        h, w = shape[1:]
        if h % 4 == 0 and w % 4 == 0 and max(h, w) <= 16:
            return build("digits_cnn", classes=classes, shape=shape)
        if min(h, w) >= 16:
            return build("small_cnn", classes=classes, shape=shape)
    layers = [nn.Linear(int(np.prod(shape)), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def _range(inputs: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value; 1 below and above if they are equal."""
    low, high = float(inputs.min()), float(inputs.max())
    return (low, high) if low < high else (low - 1.0, high + 1.0)


def _about(train: Split, validation: Split) -> dict[str, Any]:
    counts = {"train": len(train), "validation": len(validation), "test": len(validation)}
    return {"name": "sklearn", "source": "arrays", "files": {}, "missing": None, "class_names": None, "counts": counts}
