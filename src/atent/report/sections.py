"""What the page says of one run, section by section."""

from __future__ import annotations

import json
import math
from typing import Any

from atent import plots, stats
from atent import runs as folder
from atent.attacks.spec import show
from atent.data import described as samples
from atent.experiments.certificate import layout, sigma_of
from atent.experiments.comparison import caveat, remarks
from atent.experiments.target import names_data, names_model
from atent.paper.theory import command as theories
from atent.report import words
from atent.report.collect import Run, threats
from atent.report.page import Cell, Html, Inside, command, facts, figure, markup, picture, table, tag
from atent.report.samples import Gallery, Sample, Seen
from atent.runs.checkpoint import STATE
from atent.threat import Threat


def of_run(run: Run, shown: Gallery | str) -> list[Html]:
    """Every section of a run; ``shown`` are its images, or why there are none."""
    return [
        headline(run),
        section("What was trained", trained(run)),
        section("Accuracy under each attack", attacks(run)),
        section("Accuracy by class", classes(run)),
        section("Best and last epoch", epochs(run)),
        section("Training", course(run)),
        section("Robustness against radius", radii(run)),
        section("Certified accuracy", certificates(run)),
        section("Test images under attack", images(shown)),
        section("Checks for masked gradients and weak attacks", checks(run)),
        section("The theory, checked", theory(run)) if _has_theory(run) else Html(""),
        section("Settings", settings(run)),
        section("How and where it was made", environment(run)),
    ]


def section(title: str, *inside: Inside) -> Html:
    """A titled part of a run."""
    return tag("section", tag("h3", title), inside)


def share_cell(share: dict[str, Any]) -> Cell:
    """A share as a cell: "31.6 % [27.5, 35.9]"."""
    return Cell(stats.percent(share), share["value"])


def caveats(found: dict[str, Any]) -> Html | None:
    """What must stand beside an evaluation's robust accuracies."""
    note = caveat(found["attacks"], found["search_dtype"])
    lines = [tag("p", line, class_="note") for line in remarks(found["attacks"])]
    return markup([tag("p", note, class_="warning") if note else None, lines]) if note or lines else None


def worst_of(found: dict[str, Any]) -> Html:
    """Which attack the worst case is owed to, in a sentence."""
    named = found["attacks"]
    if not named:
        return tag("p", "No attack was run.", class_="warning")
    if found["cascade"]:
        counts = [found["natural"]["k"], *(a["robust"]["k"] for a in named.values())]
        took = [name for name, before, after in zip(named, counts, counts[1:]) if after < before]
        last = f"the last to fool an image was {took[-1]}" if took else "none fooled an image"
        return tag("p", f"The worst of {', '.join(named)}, run in this order, each on what still stood; {last}.")
    name, least = min(named.items(), key=lambda item: item[1]["robust"]["k"])
    alone = f"the strongest one alone is {name}, with {stats.percent(least['robust'])}"
    return tag("p", f"The worst of {', '.join(named)}; {alone}." if len(named) > 1 else f"Under {name} alone.")


def headline(run: Run) -> Html:
    """The robust accuracy that may be claimed, the natural one, and what must be said beside them."""
    found = run.judged
    if found is None:
        said = "Not judged on the test set yet, so there is no robust accuracy to claim. To judge it:"
        return tag("div", tag("p", said, class_="warning"), _command(run, "evaluate"))
    robust, natural = found["worst"], found["natural"]
    under = " and ".join(threats(found)) or "no threat"
    tiles = [
        tag(
            "div", tag("span", f"robust accuracy, {under}"), tag("b", words.percent(robust["value"])),
            tag("span", f"95 % interval {_interval(robust)}; {robust['k']:,} of {robust['n']:,} images"),
            class_="tile first",
        ),
        tag(
            "div", tag("span", "natural accuracy, no attack"), tag("b", words.percent(natural["value"])),
            tag("span", f"95 % interval {_interval(natural)}; {natural['k']:,} of {natural['n']:,} images"),
            class_="tile",
        ),
    ]  # fmt: skip
    others = []
    if len(run.evaluations) > 1:
        others.append(
            f"Of {len(run.evaluations)} evaluations this is {run.headline}, the one with the lowest upper limit under"
            " this threat."
        )
    for name, other in run.evaluations.items():
        unsure = caveat(found["attacks"], found["search_dtype"])
        if unsure and other["attacks"] and not caveat(other["attacks"], other["search_dtype"]):
            others.append(f"AutoAttack was run in {name}: {_short(other)}.")
    data = found["data"]
    told = f"Measured on {data['name']}, {data['split']} images: {samples.words(data)}; with true labels."
    return tag(
        "div", tag("div", tiles, class_="tiles"), worst_of(found), caveats(found), [tag("p", o) for o in others],
        tag("p", f"{told} Robust accuracy is an upper bound: no attack finds everything."),
        tag("p", found["hint"], class_="warning") if found.get("hint") else None,
    )  # fmt: skip


def _interval(share: dict[str, Any]) -> str:
    return f"[{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _short(found: dict[str, Any]) -> str:
    under = " and ".join(threats(found))
    weights = f", weights {found['weights']}" if found.get("weights", "best") != "best" else ""
    return f"{stats.percent(found['worst'])} of {samples.words(found['data'])} images under {under}{weights}"


def trained(run: Run) -> list[Html]:
    """Recipe, data, network, and the method in words."""
    config = run.config
    method, about = config["method"], config.get("about") or {}
    data, model, train = (part or {} for part in (about.get("data"), config.get("model"), config.get("train")))
    optimizer, schedule = config.get("optimizer") or {}, config.get("schedule") or {}
    counts = data.get("counts") or {}
    size = [f"{counts[k]:,} {k}" for k in ("train", "validation", "test") if k in counts]
    if "classes" in data and "shape" in data:
        size.append(f"{data['classes']} classes, inputs of {' x '.join(map(str, data['shape']))}")
    augment = (config.get("data") or {}).get("augment")
    if augment and augment != "none":
        size.append(f"augmented by {augment}")
    name, threat = str(method.get("name") or "unknown"), method.get("threat")
    network = str(model.get("name") or model.get("class") or "unknown")
    begun = f", begun from {model['weights']}" if model.get("weights") else ""
    rate = f", learning rate {words.value(optimizer['lr'])}" if "lr" in optimizer else ""
    kind = f", {schedule['kind']} schedule" if "kind" in schedule else ""
    length = [f"{train[k]} {label}" for k, label in (("epochs", "epochs"),) if k in train]
    length += [f"{label} {train[k]}" for k, label in (("batch_size", "batches of"), ("seed", "seed")) if k in train]
    doc = words.method(name)
    awp = (train.get("awp") or {}).get("gamma")
    length += [f"weights perturbed by {words.value(awp)} (AWP)"] if awp else []
    return [
        facts(
            [
                ("recipe", config.get("recipe") or "none: trained from Python"),
                ("method", [tag("b", name), f": {doc}" if doc else None]),
                ("trained against", words.threat(threat) if threat else "no adversary of a fixed radius"),
                ("data", ": ".join(filter(None, [str(data.get("name") or "unknown"), ", ".join(size)]))),
                (
                    "network",
                    network + (f", {about['parameters']:,} parameters" if "parameters" in about else "") + begun,
                ),
                ("training", ", ".join(length)),
                ("optimizer", f"{optimizer.get('name', 'unknown')}{rate}{kind}"),
            ]
        ),
        _method_settings(name, method, about.get("chain") or {}),
    ]


def _method_settings(name: str, method: dict[str, Any], chain: dict[str, Any]) -> Html:
    """The method's fields, each with its meaning; what was left out is as the method resolved it."""
    meanings = words.meanings(name)
    rows = []
    for key, value in method.items():
        if key not in ("name", "threat"):
            became = f" (became {words.value(chain[key])})" if value is None and chain.get(key) is not None else ""
            rows.append((key, words.value(value) + became, meanings.get(key, "")))
    if not rows:
        return tag("p", "The method has no settings.", class_="note")
    listed = table(("setting", "value", "what it is"), rows, label=f"settings of {name}", sortable=False)
    return tag("details", tag("summary", f"The {len(rows)} settings of {name}"), listed)


def attacks(run: Run) -> list[Html]:
    """A table for each evaluation."""
    if not run.evaluations:
        return [_missing("There is no evaluation.")]
    out: list[Html] = []
    for name, found in run.evaluations.items():
        if len(run.evaluations) > 1:
            out.append(tag("h4", f"{name}: {_short(found)}"))
        out += _attack_table(name, found)
        said = caveats(found) if len(run.evaluations) > 1 else None
        out += [said] if said else []
    return out


def _attack_table(name: str, found: dict[str, Any]) -> list[Html]:
    cascade, several, right = found["cascade"], len(threats(found)) > 1, found["natural"]["k"]
    rows: list[list[Any]] = [["no attack (natural)", share_cell(found["natural"]), *[""] * 4]]
    for label, told in found["attacks"].items():
        under = f", {show(Threat(**told['threat']))}" if several else ""
        written = tag("code", told["attack"]) if told["attack"] != label else None
        rows.append([[f"{'after ' if cascade else ''}{label}{under}", written], *_cells(told, right)])
        rows += [[f"{label}: after its {part}", *_cells(inner, right)] for part, inner in told.get("parts", {}).items()]
    foot: list[Any] | None = (
        ["worst of these", share_cell(found["worst"]), *[""] * 4] if len(found["attacks"]) > 1 else None
    )
    headings = ("attack", "accuracy, 95 % interval", "attacked", "median distance", "passes per image", "seconds")
    how = (
        "Attacks ran from cheap to dear, each on the images that still stood; a figure is what stands after it and all"
        " before it."
        if cascade
        else "Each attack ran alone on every rightly classified image."
    )
    note = (
        f"{how} n = {found['n']:,}, seed {found.get('seed', 'unknown')}. The distance, in pixel units, is that of the"
        " images that the attack fooled; passes are forward and backward ones."
    )
    return [
        table(headings, rows, foot=foot, label=f"accuracy under each attack, {name}"),
        tag("p", note, class_="note"),
    ]


def _cells(told: dict[str, Any], right: int) -> list[Cell]:
    # Earlier results held the median alone, and no number of images attacked: all that were right.
    attacked = told.get("attacked", right)
    distance = (told.get("distance") or {}).get("median", told.get("distance_median"))
    passes = (told["forwards"] + told["backwards"]) / attacked if attacked and "forwards" in told else None
    return [
        share_cell(told["robust"]),
        Cell("" if attacked is None else f"{attacked:,}", attacked),
        Cell("" if distance is None else f"{distance:.4g}", distance),
        Cell("" if passes is None else f"{passes:,.0f}", passes),
        Cell(f"{told['seconds']:,.1f}" if "seconds" in told else "", told.get("seconds")),
    ]


def classes(run: Run) -> list[Html]:
    """Clean and robust accuracy class by class, for each evaluation that recorded them."""
    out: list[Html] = []
    for name, found in run.evaluations.items():
        names = found["data"].get("class_names")
        rows: list[list[Any]] = [
            [
                str(names[row["class"]]) if names else str(row["class"]), Cell(f"{row['n']:,}", row["n"]),
                share_cell(row["natural"]), share_cell(row["worst"]),
            ]
            for row in found.get("per_class") or ()
        ]  # fmt: skip
        if rows:
            under = ", ".join(found["attacks"]) or "no attack"
            headings = ("class", "test images", "clean, 95 % interval", f"robust to all of {under}, 95 % interval")
            out.append(table(headings, rows, label=f"accuracy by class, {name}"))
            out.append(tag("p", f"{name}; intervals are of single classes, n is that of the class.", class_="note"))
    return out or [_missing("Not recorded. To measure it:"), _command(run, "evaluate")]


def epochs(run: Run) -> list[Html]:
    """What the best epoch's weights keep, and the last's: robust overfitting shows in the difference."""
    first = next(iter(run.evaluations.values()), {})
    last, best_row = first.get("last"), next((r for r in reversed(run.rows) if r.get("best")), None)
    rows: list[list[Any]] = []
    if best_row is not None:
        for kind in ("natural", "robust"):
            key = f"validation_{kind}"
            cells = [Cell(_validation(r, key), r.get(key)) for r in (best_row, run.rows[-1])]
            if any(cell.value is not None for cell in cells):
                rows.append([f"validation, {kind}", *cells])
    if last:
        pairs = [("natural", first["natural"], last["natural"])]
        pairs += [
            (n, a["robust"], (last.get("attacks") or {}).get(n, {}).get("robust")) for n, a in first["attacks"].items()
        ]
        pairs += [("worst of these", first["worst"], last["worst"])]
        rows += [[f"test, {name}", share_cell(a), share_cell(b) if b else ""] for name, a, b in pairs]
    if not rows:
        return [_missing("The metrics do not say which epoch was the best.")]
    best, end = run.best_epoch, run.rows[-1]["epoch"] if run.rows else (last or {}).get("epoch")
    out = [
        table(
            ("accuracy, 95 % interval", f"best epoch ({best})", f"last epoch ({end})"), rows, sortable=False,
            label="accuracy at the best and at the last epoch",
        ),
        tag(
            "p", f"The best epoch was chosen on the validation images{_selected(run)}, never by the test set.",
            class_="note",
        ),
    ]  # fmt: skip
    if best == end:
        out.append(tag("p", "The last epoch is the best one.", class_="note"))
    elif not last:
        out.append(_missing("The last epoch's weights were not judged on the test set."))
    return out


def _selected(run: Run) -> str:
    told = ((run.config.get("about") or {}).get("subsets") or {}).get("validation")
    return f" ({samples.words(told)})" if told else ""


def _validation(row: dict[str, Any], key: str) -> str:
    if row.get(key) is None:
        return ""
    ends = [row.get(f"{key}_{end}") for end in ("low", "high")]
    interval = "" if None in ends else " " + _interval({"low": ends[0], "high": ends[1]})
    return words.percent(row[key]) + interval


def course(run: Run) -> list[Html]:
    """The training curves."""
    drawn = [row for row in run.rows if row.get("validation_natural") is not None]
    if not drawn:
        return [_missing("There are no validation accuracies to draw: metrics.jsonl is absent or has none.")]
    seconds = [row["seconds"] for row in run.rows if "seconds" in row]
    total = f"{len(run.rows)} epochs, {sum(seconds):,.0f} seconds in all." if seconds else None
    return [figure(plots.curves(drawn), words.course(drawn), total, height=4.6)]


def radii(run: Run) -> list[Html]:
    """Security curves."""
    out: list[Html] = []
    for name, found in run.evaluations.items():
        rows = found.get("sweep")
        if rows:
            n = rows[0]["robust"]["n"]
            out.append(figure(plots.security(rows), words.security(rows), f"{name}: each attack alone, n = {n:,}."))
            listed = [
                [
                    row["attack"],
                    Cell(row["threat"], row["radius"]),
                    share_cell(row["robust"]),
                    share_cell(row["monotone"]),
                ]
                for row in rows
            ]
            headings = ("attack", "radius", "robust accuracy, 95 % interval", "counting smaller radii too")
            out.append(table(headings, listed, label=f"robust accuracy by radius, {name}"))
    if out:
        return out
    told = next((a["threat"] for found in run.evaluations.values() for a in found["attacks"].values()), None)
    eps = float((told or run.config["method"].get("threat") or {}).get("eps", "inf"))
    some = [f"{factor * eps:.4g}" for factor in (0.5, 1, 1.5)] if 0 < eps < math.inf else ["0.1", "0.2"]
    return [_missing("Not measured yet. To measure it:"), _command(run, "evaluate", "--radius", *some)]


def certificates(run: Run) -> list[Html]:
    """What was proved."""
    out: list[Html] = []
    for name, found in run.certificates.items():
        _, rows, below = layout({"run": run.name, **found.content})
        if found.radii is not None:
            told = ", ".join(
                f"{words.percent(row['share']['value'])} at {row['radius']:.3g}" for row in found.content["certified"]
            )
            n = len(found.radii)
            out.append(
                figure(
                    plots.certified({run.name: found.radii}),
                    f"Certified accuracy of {n:,} test images against l2 radius in pixel units: {told}.",
                    f"{name}: randomised smoothing; a certificate is wrong with a probability of at most"
                    f" {found.content['draws']['alpha']:g}.",
                )
            )
        listed = [(text, share_cell(share)) for text, share in rows]
        out.append(table(("proved", "accuracy, 95 % interval"), listed, label=f"certified accuracy, {name}"))
        lines = [f"{name}, test images: {samples.words(found.content['images'])}.", *below]
        out.append(tag("p", "; ".join(line.rstrip(".") for line in lines) + ".", class_="note"))
    out += [_missing(f"{name} is not finished: run the same command again.") for name in run.unfinished]
    if out:
        return out
    return [_missing("Nothing is proved yet. To prove it:"), _command(run, "certify", *_certified_by(run))]


def _certified_by(run: Run) -> tuple[str, ...]:
    """The options with which the run can be certified: by its own noise, by the bounds it was trained for, or by noise
    that it never saw."""
    try:
        sigma_of(run.config, run.name)
    except ValueError:
        if run.config["method"].get("name") in ("CROWNIBP", "Dual"):
            return "--method", "crown"
        low, high = ((run.config.get("about") or {}).get("data") or {}).get("box") or (0.0, 1.0)
        return "--sigma", f"{0.25 * (high - low):g}"
    return ()


def _command(run: Run, verb: str, *options: str) -> Html:
    """A command on the run, with the names that its folder does not hold; the one that resumes it before its first
    weights."""
    words = ["atent", verb, str(run.path), *options]
    if not (run.path / folder.BEST).is_file() and (run.path / folder.LAST / STATE).is_file():
        words = ["atent", "train", "--resume", str(run.path)]
    elif verb == "evaluate" and not _has_threat(run):
        words += ["--norm", "linf", "--eps", "8/255"]
    if not names_model(run.config):
        words += ["--model", run.model or "MODULE:FUNCTION"]
    if not names_data(run.config):
        words += ["--data", run.data or "MODULE:FUNCTION"]
    return command(*words)


def _has_threat(run: Run) -> bool:
    evaluate = run.config.get("evaluate") or {}
    return bool(run.config["method"].get("threat")) or None not in (evaluate.get("norm"), evaluate.get("eps"))


def images(shown: Gallery | str) -> list[Html]:
    """Original, adversarial and difference, side by side."""
    if isinstance(shown, str):
        return [_missing(shown)]
    fooled = sum(sample.fooled for sample in shown.samples)
    n = len(shown.samples)
    return [
        tag(
            "p", f"Test images, {shown.which}, under ", tag("code", shown.attack), f", {show(shown.threat)}"
            f": {fooled} of {n} are misclassified after it, natural errors included. Differences are shown"
            f" {shown.factor:.3g}-fold, around grey. Percentages are the model's confidence in the class that it sees.",
        ),
        tag("ul", [tag("li", _sample(sample, shown)) for sample in shown.samples], class_="samples"),
    ]  # fmt: skip


def _sample(sample: Sample, shown: Gallery) -> list[Html]:
    def seen(word: str, image: Seen) -> Html:
        says = f"seen as {image.label}, {words.percent(image.confidence)}"
        picked = picture(image.png, f"image {sample.number}, class {sample.label}, {word}: {says}")
        return tag("div", picked, word, tag("br"), tag("b", image.label), f" {words.percent(image.confidence)}")

    verdict = "wrong by itself" if not sample.right else "fooled" if sample.fooled else "stands"
    moved = f"{shown.threat.norm} {sample.distance:.3g}"
    changed = picture(sample.difference, f"image {sample.number}, difference x {shown.factor:.3g}: {moved}")
    return [
        tag(
            "p", tag("b", f"class {sample.label}"), f", image {sample.number}: ",
            tag("span", verdict, class_="pass" if verdict == "stands" else "warn"),
        ),
        tag(
            "div", seen("original", sample.original), seen("adversarial", sample.adversarial),
            tag("div", changed, "difference", tag("br"), moved), class_="three",
        ),
    ]  # fmt: skip


def checks(run: Run) -> list[Html]:
    """Why to believe the figures, or not to."""
    out: list[Html] = []
    for name, found in run.evaluations.items():
        made = found.get("checks")
        if made:
            failed = sum(not check["passed"] for check in made)
            out.append(tag("p", f"{name}: {len(made) - failed} of {len(made)} checks pass."))
            rows = [
                (check["name"], _verdict(check["passed"]), [check["figure"], _why(check)])
                for check in made
            ]  # fmt: skip
            out.append(table(("check", "result", "figure"), rows, label=f"checks, {name}"))
    if out:
        return out
    return [_missing("Not made yet. To make them:"), _command(run, "evaluate", "--checks")]


def _has_theory(run: Run) -> bool:
    return bool(run.theories) or run.config["method"].get("name") == "ATENT"


def theory(run: Run) -> list[Html]:
    """Each statement of the theory on this network: its verdict, the figure behind it, and why."""
    if not run.theories:
        return [_missing("Not checked yet. To check it:"), _command(run, "theory")]
    out: list[Html] = []
    for name, found in run.theories.items():
        out += [tag("p", warning, class_="warning") for warning in found["warnings"]]
        rows = [
            [
                row["statement"],
                [row["claim"], tag("div", row["checked"], class_="note")],
                tag("span", row["verdict"], class_="pass" if row["verdict"] == "holds" else "warn"),
                [theories.figure(row), [tag("div", line, class_="note") for line in _behind(row) if line]],
            ]
            for row in found["rows"]
        ]
        headings = ("", "statement, and what was checked", "verdict", "figure, 95 %, and what it is worth")
        out.append(table(headings, rows, label=f"theory, {name}"))
        for curve in found["curves"].values():
            ends = [f"{label}: {curve['y']} {ys[0]:.3g} to {ys[-1]:.3g}" for label, (_, ys) in curve["lines"].items()]
            out.append(figure(plots.lines(curve), f"{curve['title']}. {'; '.join(ends)}.", curve["title"]))
        told = "; ".join(line.rstrip(".") for line in theories.summary(found))
        out.append(tag("p", f"{name}: {told}.", class_="note"))
    return out


def _behind(row: dict[str, Any]) -> tuple[str, ...]:
    n = "" if row["n"] is None else f"n = {row['n']:,}"
    return ", ".join(part for part in (row["what"], n) if part), row["reason"], row["note"]


def _verdict(passed: bool) -> Html:
    return tag("span", "pass" if passed else "warning", class_="pass" if passed else "warn")


def _why(check: dict[str, Any]) -> Html | None:
    return None if check["passed"] else tag("div", check["why"], class_="note")


def settings(run: Run) -> Html:
    """The resolved configuration, whole."""
    shown = {key: value for key, value in run.config.items() if key not in ("about", "provenance")}
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    return tag("details", tag("summary", f"The full configuration ({folder.CONFIG})"), tag("pre", text, tabindex=0))


def environment(run: Run) -> list[Html]:
    """Versions, commits, seeds, machines and data: for the training and for each judgement."""
    columns = {"training": (run.config.get("provenance") or {}, None)}
    columns |= {name: (found["provenance"], found["n"]) for name, found in run.evaluations.items()}
    columns |= {name: (c.content.get("provenance") or {}, c.content["n"]) for name, c in run.certificates.items()}
    names = ("version", "commit", "device", "threads", "python", "torch", "numpy", "seed", "time")
    rows: list[list[Any]] = [[name, *(_made(made, name) for made, _ in columns.values())] for name in names]
    rows.append(["test images", *("" if n is None else f"{n:,}" for _, n in columns.values())])
    data = (run.config.get("about") or {}).get("data") or {}
    files = [
        tag("li", f"{name}: sha256 ", tag("code", about.get("sha256", "unknown")))
        for name, about in (data.get("files") or {}).items()
        if isinstance(about, dict)
    ]
    return [
        table(("", *columns), rows, label="versions, seeds and machines", sortable=False),
        facts([("folder", tag("code", str(run.path))), ("source of the data", data.get("source"))]),
        *([tag("p", "Files of the data:", class_="note"), tag("ul", files, class_="note")] if files else []),
    ]


def _made(made: dict[str, Any], name: str) -> str:
    value = made.get(name)
    if value is None:
        return "unknown" if name in ("version", "commit") else ""
    if name == "commit":
        return str(value)[:12] + (", changed since" if made.get("dirty") else "")
    if name == "device" and made.get("device_name") not in (None, value):
        return f"{value} ({made['device_name']})"
    if name == "time":
        return str(value).replace("T", " ").replace("+00:00", " UTC")
    return str(value)


def _missing(text: Inside) -> Html:
    return tag("p", text, class_="note")
