"""Names of networks that are not paths: ``zoo:name`` and ``hub:user/name``, and the folders that they mean."""

from __future__ import annotations

from pathlib import Path

from atent import zoo
from atent.extras import extra
from atent.runs import manifest

PREFIXES = ("zoo:", "hub:")
# What a network is loaded, evaluated and reported from; a repository may hold anything beside it.
_WANTED = ["config.json", "manifest.json", "model.safetensors", "evaluation*.json", "certificate*.json", "card.json"]


def is_named(target: str | Path) -> bool:
    """Whether a target is the name of a network in the zoo or on the Hub."""
    return str(target).startswith(PREFIXES) and not Path(target).exists()


def place_of(target: str | Path) -> Path:
    """The folder that a name means; a path as it is. A network of the Hub is downloaded, and kept in the Hub's cache.

    ValueError, FileNotFoundError or ImportError for an unknown name, one that cannot be downloaded, and
    without the extra.
    """
    if not is_named(target):
        return Path(target)
    kind, _, name = str(target).partition(":")
    return zoo.find(name) if kind == "zoo" else _downloaded(name)


def _downloaded(name: str) -> Path:
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"hub:{name} must be hub:user/name, or hub:user/name@revision")
    client = extra("huggingface_hub", "hub", f"hub:{name}")
    try:
        path = Path(client.snapshot_download(repo, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"hub:{name} cannot be downloaded ({type(error).__name__}: {reason[:200]})") from error
    if not manifest.is_run(path):
        raise ValueError(
            f"hub:{name} is not a network of atent (no such config.json): download its weights, and give the file with"
            " --model and --data"
        )
    return path
