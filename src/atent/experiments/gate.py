"""A gate for continuous integration: compares measured accuracies with required minimums.

The lower limit of the exact 95 % interval is compared, so that a few samples cannot pass by chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from atent.attacks import ATTACKS
from atent.attacks.spec import parse, spell
from atent.experiments import migrate
from atent.experiments.comparison import against, caveat
from atent.experiments.results import BoundsFile, CertificateFile, EvaluationFile, SequentialFile, Share, SmoothingFile
from atent.experiments.target import Target
from atent.messages import shared_settings, unknown
from atent.runs.manifest import read_json
from atent.runs.names import results_in
from atent.runs.weights import fingerprint
from atent.threat import NORMS, Threat, radius

# XML has no such characters, and an annotation is one line.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass(frozen=True)
class Limits:
    """Required minimum accuracies as fractions; None if not required."""

    robust: float | None = None
    clean: float | None = None
    certified: float | None = None
    radius: float | None = None
    """At which radius the certified accuracy is compared. Default: that of the threat, or the only one in its norm."""
    norm: str | None = None
    """In which norm. Default: that of the threat, or the only one of the certificates."""
    require: str | None = None
    """An attack that the evaluation of the robust accuracy must contain."""

    @property
    def given(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in (self.robust, self.clean, self.certified))


@dataclass(frozen=True)
class Verdict:
    """One accuracy and its limit."""

    run: str
    figure: str
    """Its name, and what it is under."""
    share: Share
    limit: float
    source: str
    """The file that holds the figure."""
    caveat: str | None = None
    """That AutoAttack did not measure it, as a sentence."""

    @property
    def passed(self) -> bool:
        """Whether the lower limit of the interval is at least the limit."""
        return self.share.low >= self.limit

    @property
    def text(self) -> str:
        """One line: the figure with its interval and n, and how its lower limit compares."""
        relation = "is at least" if self.passed else "is below"
        line = (
            f"{self.run}: {self.figure} {self.share.text}, n = {self.share.n:,}: the lower limit {self.share.low:.4f}"
            f" {relation} {self.limit:g}"
        )
        return f"{line}. {self.caveat}" if self.caveat else line


def limits(
    robust: str | None = None, clean: str | None = None, certified: str | None = None, require: str | None = None
) -> Limits:
    """The limits that options give: shares such as 0.4, that of the certified accuracy also as SHARE@RADIUS, with the
    norm as in SHARE@"l2 0.5".

    ValueError for what is not a share between 0 and 1, and for ``require`` without ``robust``.
    """
    if require is not None and robust is None:
        raise ValueError("--require needs --min-robust: the attack is required for the robust accuracy")
    share, at, where = (certified or "").partition("@")
    if at and not where:
        raise ValueError(f"--min-certified {certified} has no radius after @: write it as 0.5@8/255")
    norm, space, size = where.strip().rpartition(" ")
    norm = norm.strip().lower()
    if space and norm not in NORMS:
        raise ValueError(f"--min-certified: {unknown('norm', norm, NORMS)}")
    return Limits(
        _share("--min-robust", robust),
        _share("--min-clean", clean),
        _share("--min-certified", share or certified),
        radius(size, "--min-certified: radius") if at else None,
        norm or None,
        require,
    )


def _share(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{option} must be a fraction between 0 and 1, such as 0.4, got {text!r}") from None
    if not 0 <= value <= 1:
        meant = f": did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise ValueError(f"{option} must be a fraction between 0 and 1, got {text}{meant}")
    return value


def of_evaluation(found: EvaluationFile, asked: Limits, run: str, source: str) -> list[Verdict]:
    """The verdicts on an evaluation; ValueError for a robust accuracy that it did not measure, or not by the required
    attack."""
    out = []
    if asked.robust is not None:
        if not found.attacks:
            raise ValueError(f"{source} has no attack, so no robust accuracy for --min-robust: evaluate with attacks")
        named = {name: {"attack": a.attack, "threat": asdict(a.threat)} for name, a in found.attacks.items()}
        _demand(asked.require, named, source, found.search_dtype)
        under = f"robust accuracy under {', '.join(found.attacks)} ({', '.join(found.threats)})"
        out.append(Verdict(run, under, found.worst, asked.robust, source, caveat(named, found.search_dtype)))
    if asked.clean is not None:
        out.append(Verdict(run, "clean accuracy", found.clean, asked.clean, source))
    return out


def _demand(
    required: str | None, attacks: Mapping[str, Mapping[str, Any]], source: str, search_dtype: str | None = None
) -> None:
    """ValueError, in one line, unless the ``attacks`` of ``source`` contain the required one against each threat: by
    its label, its class or its settings, in any case; AutoAttack only as `caveat` accepts it."""
    if required is None:
        return
    remedy = f"run `atent evaluate` with {required} among its --attacks"
    if _bare(required) == "autoattack":
        # What follows its colon is on the figures.
        lacking = (caveat(attacks, search_dtype) or "").partition(":")[0]
        if lacking.startswith("There is no"):
            remedy = "omit --require"
        elif lacking.startswith("AutoAttack searched in"):
            remedy = "run `atent evaluate` without --precision"
    else:
        there = {against(a) for name, a in attacks.items() if _is_required(required, name, a)}
        left = {against(a) for a in attacks.values()} - there
        at = " and ".join(sorted(f"{norm} {eps:g}" for norm, eps, *_ in left if math.isfinite(eps)))
        lacking = f"Not measured by {required}" + (f" at {at}" if there else "") if at or not there else ""
    if lacking:
        raise ValueError(f"--require {required}: {source} has {', '.join(attacks)}. {lacking}: {remedy}")


def _is_required(required: str, name: str, attack: Mapping[str, Any]) -> bool:
    """Whether an attack is the required one; ValueError if the settings of ``required`` are not those of its class."""
    text, threat = attack["attack"], Threat(**attack["threat"])
    kind, wanted = text.partition("(")[0], _bare(required)
    if wanted in (_bare(name), _bare(kind), _bare(text)):
        return True
    if wanted.partition("(")[0] != _bare(kind):
        return False
    # The recorded text omits defaults, and orders and writes settings in its own way. Neither is run here.
    with shared_settings():
        found = spell(parse(kind + required.strip()[len(kind) :], threat, ATTACKS), threat=True)
        try:
            return found == spell(parse(text, threat, ATTACKS), threat=True)
        except ValueError:  # recorded by another version, or with a package that is not installed here
            return False


def _bare(text: str) -> str:
    return "".join(text.split()).casefold()


def of_certificates(
    found: Mapping[Path, CertificateFile], asked: Limits, run: str, norm: str | None = None, eps: float | None = None
) -> list[Verdict]:
    """The verdict on a run's certificates at the radius and in the norm of ``asked``, or else of the run's threat, with
    ``norm`` and ``eps``.

    ValueError if no certificate has them, several have, or none are asked for and there are several, and for one whose
    hint says that it is not valid.
    """
    if asked.certified is None:
        return []
    if not found:
        raise ValueError(f"{run} has no finished certificate of these weights: run `atent certify` first")
    entries = [(path, entry) for path, each in found.items() for entry in _entries(each)]
    norm = asked.norm or norm
    alike = [each for each in entries if norm is None or each[1].norm == norm]
    wanted = eps if asked.radius is None else asked.radius
    chosen = [each for each in alike if wanted is not None and math.isclose(each[1].radius, wanted)]
    if asked.radius is None:
        chosen = chosen or alike
    mixed = norm is None and len({entry.norm for _, entry in entries}) > 1
    if len(chosen) != 1 or mixed:
        there = "; ".join(f"{entry.name} ({path.name})" for path, entry in entries)
        at = "" if asked.radius is None else f"at {norm or 'radius'} {asked.radius:g}"
        what = "several figures" if len(chosen) > 1 else "figures in several norms"
        what = what if chosen else f"nothing {at or f'in {norm}'}"
        raise ValueError(
            f'{run} has {what} for --min-certified: give SHARE@"NORM R", or to `atent gate` one file: {there}'
        )
    ((path, entry),) = chosen
    if found[path].invalid:
        raise ValueError(f"{path} cannot be compared with --min-certified: {found[path].invalid}")
    return [Verdict(run, entry.name, entry.share, asked.certified, str(path))]


def gate_target(target: Target, asked: Limits, search_dtype: str | None = None) -> list[Verdict]:
    """The verdicts that are available before an evaluation, on the certificates of the target.

    ValueError if a figure of ``asked`` is not measured by the evaluation and has not been before, or not by the
    required attack.
    """
    if asked.robust is not None and not target.attacks:
        raise ValueError("--min-robust needs an attack: name one by --attacks")
    planned = {name: {"attack": spell(a), "threat": a.threat.plain()} for name, a in target.attacks.items()}
    _demand(asked.require, planned, target.name, search_dtype)
    if asked.certified is None:
        return []
    weights = fingerprint(target.model)
    places = {(target.place, target.stem), *([(target.origin, "")] if target.origin is not None else [])}
    held = {path: each for place, stem in places for path, each in certificates(place, stem, weights).items()}
    own = [] if target.threat is None else [target.threat]
    norm, eps = shared(attack.threat for attack in target.attacks.values())
    return of_certificates(held, asked, target.name, *((norm, eps) if norm else shared(own)))


def threat_of(config: Mapping[str, Any], evaluated: EvaluationFile | None) -> tuple[str | None, float | None]:
    """Norm and eps of the threat that a run is about, as `shared`: that of its method, else that of its evaluation."""
    own = config.get("method", {}).get("threat")
    if own:
        return str(own["norm"]).lower(), radius(own["eps"])
    return shared(a.threat.threat() for a in evaluated.attacks.values()) if evaluated else (None, None)


def shared(threats: Iterable[Threat]) -> tuple[str | None, float | None]:
    """Norm and eps of several threats, None where they have no common one."""
    given = [(threat.norm, float(threat.eps)) for threat in threats]
    norms, radii = {norm for norm, _ in given}, {eps for _, eps in given}
    return norms.pop() if len(norms) == 1 else None, radii.pop() if len(radii) == 1 else None


def certificates(place: Path, stem: str = "", weights: str | None = None) -> dict[Path, CertificateFile]:
    """The finished certificates in a folder; with ``weights``, a fingerprint, those of these weights alone."""
    out = {}
    for path in results_in(place, f"{stem}certificate"):
        plain = read_json(path)
        if plain and plain.get("complete") is not False:
            found = migrate.parsed(plain, CertificateFile, path)
            if weights is None or found.fingerprint == weights:
                out[path] = found
    return out


def read(path: Path) -> EvaluationFile | CertificateFile:
    """The evaluation or the certificate in a file; FileNotFoundError or ValueError, in one line, for any other."""
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: give a run folder, or a file of `atent evaluate` or `certify`")
    if path.suffix != ".json":
        raise ValueError(f"{path} is not a file of results: give the .json that `atent evaluate` or `certify` wrote")
    plain: Any = read_json(path)
    if isinstance(plain, dict) and "certified" in plain:
        if plain.get("complete") is False:
            raise ValueError(f"{path} is not finished: run the same `atent certify` again")
        return migrate.parsed(plain, CertificateFile, path)
    return migrate.parsed(plain, EvaluationFile, path)


@dataclass(frozen=True)
class _Entry:
    """One figure of a certificate."""

    name: str
    norm: str
    radius: float
    share: Share


def _entries(found: CertificateFile) -> list[_Entry]:
    if isinstance(found, BoundsFile):
        named = [(e.threat.norm, float(e.threat.eps), e.share) for e in found.certified]
        return [
            _Entry(f"accuracy verified by {found.method} at {norm} {eps:g}", norm, eps, s) for norm, eps, s in named
        ]
    if isinstance(found, SmoothingFile | SequentialFile):
        return [
            _Entry(f"certified accuracy at {found.norm} {e.radius:g}", found.norm, e.radius, e.share)
            for e in found.certified
        ]
    return []


# ---- for other programs ------------------------------------------------------------------------------------


def junit(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as JUnit XML: a test case each, whose class is the run."""
    failed = str(sum(not verdict.passed for verdict in verdicts))
    root = ElementTree.Element("testsuites", name="atent", tests=str(len(verdicts)), failures=failed)
    suite = ElementTree.SubElement(
        root, "testsuite", name="atent", tests=str(len(verdicts)), failures=failed, errors="0"
    )
    for verdict in verdicts:
        name = f"{verdict.figure} at least {verdict.limit:g}"
        case = ElementTree.SubElement(suite, "testcase", classname=_plain(verdict.run), name=_plain(name), time="0")
        if not verdict.passed:
            failure = ElementTree.SubElement(case, "failure", message=_plain(verdict.text), type="accuracy")
            failure.text = _plain(f"{verdict.text}\nmeasured in {verdict.source}")
        ElementTree.SubElement(case, "system-out").text = _plain(f"{verdict.text}\nmeasured in {verdict.source}")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _plain(text: str) -> str:
    return _CONTROL.sub("?", text)


def github(verdicts: Iterable[Verdict]) -> list[str]:
    """The verdicts as workflow commands of GitHub Actions: an error for each figure below its limit, else a notice."""
    return [
        f"::{'notice' if v.passed else 'error'} title={_escaped(f'atent {v.run}', ':,')}::{_escaped(v.text)}"
        for v in verdicts
    ]


def _escaped(text: str, more: str = "") -> str:
    """Text as a workflow command holds it; the percent sign first."""
    for sign in ("%", "\r", "\n", *more):
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
