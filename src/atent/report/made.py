"""The contexts of the sections on training, settings and provenance."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from atent import plots
from atent import runs as folder
from atent.report import words
from atent.report.collect import Run
from atent.report.render import drawing


def trained(run: Run) -> dict[str, Any]:
    """Recipe, data, network and method as text."""
    config = run.config
    method, about = config["method"], config.get("about") or {}
    model, optimizer, schedule = (config.get(part) or {} for part in ("model", "optimizer", "schedule"))
    name, threat = str(method.get("name") or "unknown"), method.get("threat")
    network = str(model.get("name") or model.get("class") or "unknown")
    size = f", {about['parameters']:,} parameters" if "parameters" in about else ""
    begun = f", initialised from {model['weights']}" if model.get("weights") else ""
    rate = f", learning rate {words.value(optimizer['lr'])}" if "lr" in optimizer else ""
    kind = f", {schedule['kind']} schedule" if "kind" in schedule else ""
    doc = words.method(name)
    facts = [
        ("recipe", config.get("recipe") or "none: trained from Python"),
        ("method", Markup("<b>{}</b>{}").format(name, f": {doc}" if doc else "")),
        ("trained against", words.threat(threat) if threat else "no adversary of a fixed radius"),
        ("data", _data(config, about.get("data") or {})),
        ("network", network + size + begun),
        ("training", _length(config.get("train") or {})),
        ("optimizer", f"{optimizer.get('name', 'unknown')}{rate}{kind}"),
    ]
    return {"facts": facts, "name": name, "settings": _settings(name, method, about.get("chain") or {})}


def _data(config: dict[str, Any], data: dict[str, Any]) -> str:
    counts = data.get("counts") or {}
    size = [f"{counts[k]:,} {k}" for k in ("train", "validation", "test") if k in counts]
    if "classes" in data and "shape" in data:
        size.append(f"{data['classes']} classes, inputs of {' x '.join(map(str, data['shape']))}")
    augment = (config.get("data") or {}).get("augment")
    if augment and augment != "none":
        size.append(f"augmented by {augment}")
    return ": ".join(filter(None, [str(data.get("name") or "unknown"), ", ".join(size)]))


def _length(train: dict[str, Any]) -> str:
    length = [f"{train['epochs']} epochs"] if "epochs" in train else []
    length += [f"{label} {train[k]}" for k, label in (("batch_size", "batches of"), ("seed", "seed")) if k in train]
    return ", ".join(length)


def _settings(name: str, method: dict[str, Any], chain: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The method's fields with their descriptions; defaults are shown as resolved."""
    meanings = words.meanings(name)
    rows = []
    for key, value in method.items():
        if key not in ("name", "threat"):
            became = f" (resolved to {words.value(chain[key])})" if value is None and chain.get(key) is not None else ""
            rows.append((key, words.value(value) + became, meanings.get(key, "")))
    return rows


def course(run: Run) -> dict[str, Any]:
    """The training curves."""
    drawn = [row for row in run.rows if row.get("validation_clean") is not None]
    if not drawn:
        return {"drawing": None}
    seconds = [row["seconds"] for row in run.rows if "seconds" in row]
    total = f"{len(run.rows)} epochs, {sum(seconds):,.0f} seconds in total." if seconds else None
    return {"drawing": drawing(plots.curves(drawn), words.course(drawn), total, height=4.6)}


def settings(run: Run) -> dict[str, Any]:
    """The complete resolved configuration."""
    shown = {key: value for key, value in run.config.items() if key not in ("about", "provenance", "signature")}
    return {"file": folder.CONFIG, "text": json.dumps(shown, indent=2, ensure_ascii=False)}


def environment(run: Run) -> dict[str, Any]:
    """Versions, commits, seeds, machines and data: of the training, and of each evaluation and certificate."""
    columns: dict[str, tuple[dict[str, Any], int | None]] = {"training": (run.config.get("provenance") or {}, None)}
    columns |= {name: (found.provenance, found.n) for name, found in run.evaluations.items()}
    columns |= {name: (found.content.provenance, found.content.n) for name, found in run.certificates.items()}
    names = ("version", "commit", "device", "threads", "python", "torch", "numpy", "seed", "time")
    rows = [(name, [_made(made, name) for made, _ in columns.values()]) for name in names]
    rows.append(("test images", ["" if n is None else f"{n:,}" for _, n in columns.values()]))
    data = (run.config.get("about") or {}).get("data") or {}
    files = [
        (name, about.get("sha256", "unknown"))
        for name, about in (data.get("files") or {}).items()
        if isinstance(about, dict)
    ]
    return {"columns": list(columns), "rows": rows, "folder": run.path, "source": data.get("source"), "files": files}


def _made(made: dict[str, Any], name: str) -> str:
    value = made.get(name)
    if value is None:
        return "unknown" if name in ("version", "commit") else ""
    if name == "commit":
        return str(value)[:12] + (", modified" if made.get("dirty") else "")
    if name == "device" and made.get("device_name") not in (None, value):
        return f"{value} ({made['device_name']})"
    if name == "time":
        return str(value).replace("T", " ").replace("+00:00", " UTC")
    return str(value)
