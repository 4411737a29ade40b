"""From several networks to their transfer matrix."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.attacks.spec import show, spell
from atent.data import Data
from atent.evaluate import checked, measure_transfer
from atent.evaluate.outcomes import bits
from atent.evaluate.study import depends_on
from atent.evaluate.transfer import transfer_settings
from atent.experiments.evaluation import network_of
from atent.experiments.partial_files import unfinished
from atent.experiments.results import TRANSFER_VERSION, Samples, Share, TransferFile
from atent.experiments.results.base import Adversary
from atent.experiments.results.studies import Network
from atent.experiments.target import Target, load_target
from atent.models.convention import Convention
from atent.precision import SearchDtype
from atent.progress import bar
from atent.runs.checkpoint import read_states
from atent.runs.foreign import is_weights
from atent.runs.places import is_named

TRANSFER = "transfer.json"


def load_targets(
    texts: Sequence[str], attack: str, *, data: str | None = None, model: str | None = None,
    convention: Convention | None = None, **how: Any,
) -> dict[str, Target]:  # fmt: skip
    """The networks by name, all with the one ``attack``, on the data, the images and the settings of the first.

    ``data`` is for those that bring none (default: the data of the first run among them); ``model`` and ``convention``
    are for the weights files that training here did not write; ``how`` is passed to `load_target`. Networks with equal
    names are distinguished by their paths.

    Raises
    ------
    ValueError
        For a network that is given twice, for data of other forms, for options of files where there is
        none from elsewhere, and where the runs have different
        threats and no ``norm`` and ``eps`` say which.
    """
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: omit one")
    elsewhere = [text for text in texts if _is_from_elsewhere(text)]
    options = {"--model": model, (convention or Convention()).options().split(" ")[0]: convention}
    idle = next((option for option, value in options.items() if value is not None and not elsewhere), None)
    if idle is not None:
        raise ValueError(f"{idle} has no effect on {', '.join(texts)}: it is for external weights files")
    found: dict[str, Target] = {}
    brought: Data | None = None
    # Runs first: they bring the data for the others.
    for text in sorted(texts, key=lambda text: not _is_run(text)):
        if _is_run(text):
            found[text] = load_target(text, attacks=(attack,), **how)
            brought = brought or found[text].data
        else:
            more = {"model": model, "convention": convention} if text in elsewhere else {}
            found[text] = load_target(
                text, attacks=(attack,), **{**how, **more, "data": data or brought, "which": "best"}
            )  # fmt: skip
    made = [found[text] for text in texts]
    first = made[0]
    for text, each in zip(texts, made):
        for what, own, other in (
            ("data", each.data.name, first.data.name),
            ("inputs of shape", each.data.shape, first.data.shape),
            ("classes", each.data.classes, first.data.classes),
            ("values in", each.data.box, first.data.box),
            (
                "test images",
                each.data.sample("test", "all").ids.tolist(),
                first.data.sample("test", "all").ids.tolist(),
            ),
        ):
            if own != other:
                mismatch = "other test images" if what == "test images" else f"{what} {own}, {texts[0]} has {other}"
                raise ValueError(f"{text} has {mismatch}: a transfer matrix needs networks of the same data")
        threats = [next(iter(t.attacks.values())).threat for t in (first, each)]
        if threats[0] != threats[1]:
            raise ValueError(
                f"{texts[0]} has the threat {show(threats[0])}, {text} has {show(threats[1])}: give --norm and --eps"
            )
    names = [each.name for each in made]
    return {
        each.name if names.count(each.name) == 1 else text: replace(each, data=first.data, settings=first.settings)
        for text, each in zip(texts, made)
    }


def _is_run(text: str) -> bool:
    """Whether a network brings its data: a run folder, or a name that means one."""
    return Path(text).is_dir() or is_named(text)


def _is_from_elsewhere(text: str) -> bool:
    """Whether a network is of a weights file that training here did not write."""
    return not _is_run(text) and is_weights(text) and Path(text).is_file() and not read_states(Path(text))[0]


@contextlib.contextmanager
def unfinished_matrix(
    targets: Mapping[str, Target], place: Path, search_dtype: SearchDtype | None = None
) -> Iterator[Path]:
    """The ``partial`` of `transfer_matrix` for a result at ``place``: see `unfinished`."""
    first = next(iter(targets.values()))
    attack = next(iter(first.attacks.values()))
    models = {name: target.model for name, target in targets.items()}
    about = depends_on(
        first.model, checked(first.model, *first.test(), {attack.threat.box}), box=attack.threat.box,
        seed=first.settings.seed, batch=first.settings.batch, attacks={"attack": attack},
        models=models, **transfer_settings(models, search_dtype, first.settings.folding),
    )  # fmt: skip
    networks = [[name, *network_of(target, place)] for name, target in targets.items()]
    with unfinished(place, "transfer matrix", about, networks=networks) as partial:
        yield partial


def transfer_matrix(
    targets: Mapping[str, Target], *, search_dtype: SearchDtype | None = None, partial: Path | None = None,
    progress: bool = True,
) -> TransferFile:  # fmt: skip
    """The robust accuracy of each target under the attack on each; the content of transfer.json.

    ``partial`` names a file from which a killed measurement resumes, as `unfinished_matrix` gives it. Raises as
    `atent.evaluate.measure_transfer`.
    """
    begun = time.perf_counter()
    first = next(iter(targets.values()))
    attack = next(iter(first.attacks.values()))
    x, y, ids = first.test()
    with bar(len(x) * len(targets), "transfer", enabled=progress) as advance:
        found = measure_transfer(
            {name: target.model for name, target in targets.items()}, x, y, attack, seed=first.settings.seed, ids=ids,
            batch=first.settings.batch, resume=partial, search_dtype=search_dtype, folding=first.settings.folding,
            advance=advance,
        )  # fmt: skip
    n = len(x)
    networks = [
        Network(
            name,
            target.about,
            Share.of(int(found.right[j].sum()), n),
            [Share.of(int(found.robust[i, j].sum()), n) for i in range(len(targets))],
            bits(found.right[j]),
            [bits(found.robust[i, j]) for i in range(len(targets))],
        )
        for j, (name, target) in enumerate(targets.items())
    ]
    return TransferFile(
        schema_version=TRANSFER_VERSION,
        data=Samples(**first.samples()),
        n=n,
        seed=first.settings.seed,
        attack=spell(attack),
        threat=Adversary.of(attack.threat),
        networks=networks,
        search_dtype=search_dtype,
        seconds=round(time.perf_counter() - begun, 3),
        provenance=folder.provenance(seed=first.settings.seed, device=x.device),
    )
