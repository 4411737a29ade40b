"""The trials of a sweep in Optuna's journal, and the proposal of new trials.

The journal is the only record of the trials, and `optuna-dashboard` reads it. The next settings follow from the
sampler's seed, the number of the trial and the earlier trials only, so that a resumed sweep proposes the same trials as
an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.experiments.sweep.space import Choice, Parameter
from atent.experiments.sweep.spec import Sweep
from atent.extras import extra
from atent.rng import fold

JOURNAL = "journal.log"
_LEAST = 4
"""Complete trials from which importances are computed."""


@dataclass(frozen=True)
class Trial:
    """A trial as the journal has it."""

    number: int
    state: str
    """running, complete, pruned or failed."""
    settings: dict[str, Any]
    figures: dict[int, float]
    """The best objective so far after each measured epoch, of the first seed."""
    notes: dict[str, Any]
    """The notes that `Study.note` recorded."""


class Study:
    """The journal of one sweep; one process has it open, under the lock of the sweep's folder.

    Parameters
    ----------
    path
        The sweep's folder.
    sweep
        The sweep of the journal.
    parallel
        Whether several trials run concurrently: tpe then avoids the running ones.

    Raises
    ------
    ImportError
        Where Optuna is not installed.
    ValueError
        For the journal of another sweep, and for a damaged one.
    """

    def __init__(self, path: Path, sweep: Sweep, *, parallel: bool = False) -> None:
        self.library = extra("optuna", "sweep", "atent sweep")
        self.sweep, self.parallel = sweep, parallel
        self.library.logging.set_verbosity(self.library.logging.ERROR)
        file = path / JOURNAL
        _cut(file)
        journal = extra("optuna.storages.journal", "sweep", "atent sweep")
        with _quiet():
            try:
                self.storage = journal.JournalStorage(journal.JournalFileBackend(str(file), lock_obj=_Unlocked()))
                known = [each.study_name for each in self.storage.get_all_studies()]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file} is damaged ({error}): choose another --name") from None
            name = f"{sweep.name} {_digest(sweep)}"
            if known and known != [name]:
                raise ValueError(f"{file} is the journal of another sweep ({known[0]}): choose another --name")
            study = self.library.create_study(
                storage=self.storage, study_name=name, load_if_exists=True, directions=sweep.directions
            )
        self._id = study._study_id
        self.study = study

    # ---- the record

    def trials(self) -> list[Trial]:
        """All trials by number."""
        names = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Trial(t.number, names.get(t.state.name, "running"), t.params, t.intermediate_values, t.user_attrs)
            for t in self.storage.get_all_trials(self._id, deepcopy=False)
        ]

    def propose(self) -> Trial:
        """A new trial, which is in the journal, with its settings, as one record."""
        number = len(self.trials())
        settings = self._settings(number)
        distributions = {each.name: self._distribution(each) for each in self.sweep.space}
        with _quiet():
            self.study.add_trial(
                self.library.trial.create_trial(
                    state=self.library.trial.TrialState.RUNNING, params=settings, distributions=distributions
                )
            )
        return self.trials()[number]

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record the objective of an epoch."""
        self.storage.set_trial_intermediate_value(self._trial(number), epoch, value)

    def note(self, number: int, key: str, value: Any) -> None:
        """Record plain values with a trial."""
        self.storage.set_trial_user_attr(self._trial(number), key, folder.plain(value))

    def end(self, number: int, state: str, values: list[float] | None = None) -> None:
        """Record how a trial ended: complete with its values, pruned with its last figure, or failed."""
        kinds = self.library.trial.TrialState
        kind = {"complete": kinds.COMPLETE, "pruned": kinds.PRUNED, "failed": kinds.FAIL}[state]
        self.storage.set_trial_state_values(self._trial(number), kind, values)

    def _trial(self, number: int) -> int:
        return int(self.storage.get_trial_id_from_study_id_trial_number(self._id, number))

    # ---- what is tried next

    def _settings(self, number: int) -> dict[str, Any]:
        if self.sweep.sampler == "grid":
            return self.sweep.grid[number]
        seed, samplers = fold(self.sweep.seed, "sweep", number) % 2**32, self.library.samplers
        with _quiet():
            if self.sweep.sampler == "random":
                sampler = samplers.RandomSampler(seed=seed)
            else:
                sampler = samplers.TPESampler(
                    seed=seed, n_startup_trials=self.sweep.startup, constant_liar=self.parallel
                )
            study = self.library.create_study(sampler=sampler, directions=self.sweep.directions)
            study.add_trials(self.storage.get_all_trials(self._id, deepcopy=True))
            trial = study.ask()
            return {each.name: self._suggested(trial, each) for each in self.sweep.space}

    def _suggested(self, trial: Any, each: Parameter) -> Any:
        if isinstance(each, Choice):
            return trial.suggest_categorical(each.name, each.values)
        suggest = trial.suggest_int if each.whole else trial.suggest_float
        step = {} if each.step is None else {"step": each.step}
        return suggest(each.name, each.low, each.high, log=each.log, **step)

    def _distribution(self, each: Parameter) -> Any:
        kinds = self.library.distributions
        if isinstance(each, Choice):
            return kinds.CategoricalDistribution(each.values)
        kind = kinds.IntDistribution if each.whole else kinds.FloatDistribution
        step = {} if each.step is None else {"step": each.step}
        return kind(each.low, each.high, log=each.log, **step)

    # ---- what is found

    def best(self) -> list[int]:
        """The best trial's number, the first of equal ones; of several objectives, the numbers of the Pareto front."""
        if not any(trial.state == "complete" for trial in self.trials()):
            return []
        with _quiet():
            found = self.study.best_trials if len(self.sweep.objectives) > 1 else [self.study.best_trial]
        return sorted(trial.number for trial in found)

    def importance(self) -> dict[str, dict[str, float]]:
        """For each objective the settings' shares of its variance, by fANOVA (Hutter et al. 2014) with a fixed seed."""
        complete = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        made = {}
        for i, name in enumerate(self.sweep.objectives):
            values = [trial.values[i] for trial in complete]
            if len(complete) < _LEAST or len(set(values)) < 2:
                continue
            with _quiet():
                evaluator = self.library.importance.FanovaImportanceEvaluator(
                    seed=fold(self.sweep.seed, "fanova") % 2**32
                )
                found = self.library.importance.get_param_importances(
                    self.study, evaluator=evaluator, target=lambda trial, i=i: trial.values[i]
                )
            made[name] = {key: float(value) for key, value in found.items()}
        return made


class _Unlocked:
    """A no-op lock for the journal: the folder's lock excludes other processes, and the kernel releases it with the
    process, whereas a lock file would remain."""

    def acquire(self) -> bool:
        """Always."""
        return True

    def release(self) -> None:
        """Nothing."""


def _digest(sweep: Sweep) -> str:
    return hashlib.sha256(folder.dumps(sweep.identity()).encode()).hexdigest()[:12]


def _cut(file: Path) -> None:
    """Remove an incomplete last line, left by a kill during a write, so that appended lines do not continue it."""
    if not file.is_file():
        return
    with open(file, "rb+") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            stream.truncate(end)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings of experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def keeps(value: float, others: Mapping[int, float], *, factor: int, maximize: bool) -> bool:
    """Whether a trial passes a comparison of asynchronous successive halving (Li et al. 2020).

    A trial passes if it is among the best 1/``factor`` of the trials so far, or the best of fewer than ``factor``.
    """
    sign = 1 if maximize else -1
    better = sum(sign * other > sign * value for other in others.values())
    return better < max(1, (len(others) + 1) // factor)
