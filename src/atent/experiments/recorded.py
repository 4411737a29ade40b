"""Reads the network and the data from a run's configuration, without loading them."""

from __future__ import annotations

from typing import Any

from atent.data import SOURCES, DataSettings


def names_model(config: dict[str, Any]) -> bool:
    """Whether a run's configuration records how its network was built."""
    model = config.get("model") or {}
    return bool(model.get("name") or model.get("builder"))


def names_data(config: dict[str, Any]) -> bool:
    """Whether a run's configuration records how its data can be loaded again."""
    about = (config.get("about") or {}).get("data") or {}
    known = about.get("name") in SOURCES and about.get("source") != "tensors"
    data = config.get("data") or {}
    return bool(data.get("name") or data.get("builder") or about.get("settings")) or known


def recorded_data(config: dict[str, Any]) -> DataSettings | None:
    """The data set that a run's configuration describes; None for a run on tensors, which no settings load again."""
    data, about = config.get("data") or {}, config["about"]["data"]
    if data.get("builder") or not names_data(config):
        return None
    given = data if data.get("name") else about.get("settings")
    if given:
        # Generated samples are for training alone: an evaluation does not need their file.
        return DataSettings(**{**given, "generated": None, "generated_share": None})
    # For runs from Python the settings are derived from their results.
    split = about["split"]
    return DataSettings(
        about["name"], validation=split["validation"], split_seed=split["seed"], limit=about["limit"],
        test_limit=about["test_limit"], augment=data.get("augment", "none"), subset=data.get("subset", "stratified"),
        size=about.get("size"), **about.get("table", {}),
    )  # fmt: skip
