"""The folder of a Hugging Face Hub repository: a run folder with one file of weights, its results and a model card.

`atent.load`, `atent evaluate` and `atent certify` accept such a folder like a run folder, and ``hub:user/name`` like
the folder. Nothing is uploaded unless `push` is called.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from atent import runs as folder
from atent.data import SOURCES
from atent.experiments.target import Target
from atent.export.card import CARD, README, Card, Results, markdown
from atent.extras import extra
from atent.models.convention import parts
from atent.runs import manifest
from atent.runs.checkpoint import fill, weights_file
from atent.runs.names import CONFIG, WEIGHTS


class Client(Protocol):
    """The methods of `huggingface_hub.HfApi` that are used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Create the repository, or use the existing one."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Commit the files of a folder."""


def write_folder(target: Target, card: Card, found: Results, out: Path, repo: str | None = None) -> Path:
    """Write the folder: config.json, model.safetensors, results, card.json, README.md and the manifest of their sums.

    ValueError, in one line, for a network that cannot be rebuilt from such a folder. FileExistsError if ``out`` is in
    use.
    """
    config = configuration(target)
    out = folder.create(out)
    with manifest.sealed(out, config.get("id")) as files:
        files.write(CONFIG, folder.as_json(config, CONFIG))
        with files.add(WEIGHTS) as temporary:
            _weights(target, config, temporary)
        for path in (*found.evaluations, *found.certificates):
            files.write(_name(target, path), path.read_bytes())
    sums = {name: entry["sha256"] for name, entry in (manifest.sums(out) or {}).items()}
    with manifest.sealed(out) as files:
        files.write(CARD, folder.as_json({**card.to_json(), "sha256": sums}, CARD))
        files.write(README, markdown(card, repo))
    return out


def _name(target: Target, path: Path) -> str:
    """The name of a result in the folder."""
    return path.name if target.origin is not None else path.name.removeprefix(target.stem)


def configuration(target: Target) -> dict[str, Any]:
    """The configuration of a run, without paths and signature of this machine; for a file of weights an equivalent one.
    ValueError, in one line, for a network that only code builds."""
    if target.config:
        kept = {key: value for key, value in target.config.items() if key != "signature"}
        data = {**(kept.get("data") or {}), "root": None}
        if data.get("name") is None:
            data.pop("root")
        model = {**(kept.get("model") or {})}
        return {**kept, "data": data, "model": {**model, "weights": None} if model.get("name") else model}
    name = target.about.get("model")
    if not target.about.get("weights") or name is None or ":" in str(name):
        raise ValueError(
            f"a folder for the Hub contains weights and no code, and {target.name} is built by code: give weights of a"
            " built-in network, or use --format onnx or torch-export"
        )
    if parts(target.model)[1].bgr:
        raise ValueError(
            f"weights alone do not record that {target.name} takes its channels reversed (--bgr): use --format onnx or"
            " torch-export, which contain the complete network"
        )
    return {
        "method": {}, "model": _model(target, str(name)), "data": _data(target), "evaluate": _threat(target),
        "about": {"data": {
            "name": target.data.name, "classes": target.data.classes, "shape": list(target.data.shape),
            "box": folder.plain(target.data.box), "class_names": target.data.about.get("class_names"),
        }},
        "provenance": folder.provenance(),
    }  # fmt: skip


def _model(target: Target, name: str) -> dict[str, Any]:
    """The settings of a built-in network, with a normalisation layer if the weights have one."""
    mean, std = (target.model.state_dict().get(f"normalize.{key}") for key in ("mean", "std"))
    if mean is None or std is None:
        return {"name": name, "mean": None, "std": None}
    return {"name": name, "mean": mean.flatten().tolist(), "std": std.flatten().tolist()}


def _data(target: Target) -> dict[str, Any]:
    """The settings of a built-in data set; empty for the user's own, which must be named again."""
    name = target.data.name
    return {"name": name, "subset": target.data.subset, "split_seed": target.data.seed} if name in SOURCES else {}


def _threat(target: Target) -> dict[str, Any]:
    """The threat as settings of an evaluation."""
    if target.threat is None:
        return {}
    return {key: value for key, value in target.threat.plain().items() if key != "box"}


def _weights(target: Target, config: dict[str, Any], temporary: Path) -> None:
    """A copy of the file of weights if there is one: float16 stays float16, as the figures are of these weights."""
    named = str(target.about.get("weights"))
    source = Path(named) if target.origin is None or Path(named).is_file() else weights_file(target.origin, named)
    if source.suffix == ".safetensors" and source.is_file():
        manifest.check_file(source)
        shutil.copyfile(source, temporary)
        return
    about = config["about"]["data"]
    fill(
        temporary, target.model, {**{key: about[key] for key in ("classes", "shape", "box")}, "model": config["model"]}
    )


def client_for(repo: str) -> Client:
    """The Hub's client, which uses the user's own login; ImportError, in one line, without the extra, ValueError for a
    name that is not user/name."""
    user, slash, name = repo.partition("/")
    if not (user and slash and name) or "/" in name or any(c.isspace() or c == ":" for c in repo):
        raise ValueError(f"a repository of the Hub is user/name, got {repo!r}")
    client: Client = extra("huggingface_hub", "hub", "--push").HfApi()
    return client


def push(place: Path, repo: str, client: Client, *, private: bool = False) -> str:
    """Push a folder to a repository of the Hub, which is created if it does not exist.

    Parameters
    ----------
    place
        The folder, from the format hub of `atent.export.write.write`.
    repo
        "USER/NAME".
    client
        `huggingface_hub.HfApi`, or another object with its functions create_repo and upload_folder.
    private
        Whether a new repository is private. Default: False.

    Returns
    -------
    str
        The address of the repository.

    Examples
    --------
    >>> from pathlib import Path
    >>> from unittest.mock import Mock
    >>> from atent.export.hub import push
    >>> push(Path("digits"), "user/digits", Mock())
    'https://huggingface.co/user/digits'
    """
    client.create_repo(repo, private=private, exist_ok=True)
    client.upload_folder(repo_id=repo, folder_path=str(place), commit_message=f"Network of atent: {place.name}")
    return f"https://huggingface.co/{repo}"
