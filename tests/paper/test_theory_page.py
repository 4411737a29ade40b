"""The figures that docs/theory.md gives are those of results/theory."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text("utf-8")
DIGITS, MNIST = (
    json.loads((ROOT / "results" / "theory" / f"{name}-l2-atent-softplus.json").read_text("utf-8"))
    for name in ("digits", "mnist5k")
)


def section(start):
    """The section of the page whose heading begins so, on one line."""
    (found,) = (part for part in PAGE.split("\n## ") if part.startswith(start))
    return " ".join(found.split())


def rows(content, statement, what="", checked=""):
    return [
        row
        for row in content["rows"]
        if row["statement"] == statement and row["what"].startswith(what) and checked in row["checked"]
    ]


def one(*given, **more):
    (row,) = rows(*given, **more)
    return row


def significant(value, digits=2):
    return f"{value:.{digits}g}"


def test_the_constants_and_the_ratios_to_the_bounds():
    text = section("T1 and T2")
    for key, label in (("proved", "the network, certified"), ("estimated", "the network, estimated (lower bounds)")):
        constants = DIGITS["constants"][key]
        found = [
            row for name in ("T1", "T2") for row in rows(DIGITS, name, "largest ratio", f"softplus, {key} constants")
        ]
        shown = " / ".join(significant(row["value"], 1 if row["value"] < 0.001 else 2) for row in found)
        smooth = f"{constants['smooth']:,.0f}" if key == "proved" else f"{constants['smooth']:.2f}"
        scale = f"{constants['lipschitz']:.{0 if key == 'proved' else 2}f}"
        assert f"| {label} | {scale} | {smooth} | 0, 0 | {shown} |" in text
    proved, seen = DIGITS["constants"]["proved"], DIGITS["constants"]["estimated"]
    assert f"a factor of {proved['lipschitz'] / seen['lipschitz']:.0f} in $L$" in text
    assert f"of {round(proved['smooth'] / seen['smooth'], -3):,.0f} in $\\beta$" in text


@pytest.mark.parametrize(("content", "start"), [(DIGITS, "T4 and T6"), (MNIST, "The same on MNIST")])
def test_the_objectives_on_an_image(content, start):
    """Both objectives by thermodynamic integration, and by the exact and the printed gradient."""
    text = section(start)
    for name in ("T6", "T4"):
        for row in rows(content, name, "formula less objective"):
            for value, error in re.findall(r"([\d.]+) \+- ([\d.]+)", row["reason"]):
                assert f"{value} ± {error}" in text or f"{value} by" in text, (name, value)
            (mixing,) = re.findall(r"R-hat up to ([\d.]+)", row["reason"])
            assert mixing in text


def test_entropy_sgd_and_the_misprints():
    text = section("T8 and T9")
    right, wrong = rows(DIGITS, "T8", "mean of w'")
    assert f"{right['value']:.3f} ± {right['error']:.3f}" in text
    assert f"against {wrong['value']:.3f}" in text
    walked, kept = rows(DIGITS, "T9", "variance")
    assert f"a variance of {walked['value']:.0f} ± {walked['error']:.0f}" in text
    assert f"{kept['value']:.3f} ± {kept['error']:.3f}" in text
    walk = one(DIGITS, "T7", "mean outer gradient")
    assert f"{walk['value']:.3f} ± " in section("T7")


def test_the_ends_of_chains_and_their_mixing():
    apart = one(DIGITS, "T11", "median")
    assert f"{apart['value']:.2f} apart" in section("T11")
    (pull, ball) = re.findall(r"([\d.]+) under the", one(MNIST, "T11", "median")["reason"])
    assert f"moved by {float(pull):.3f} under the soft anchor term and by {float(ball):.3f} under" in section(
        "The same"
    )
    for content, start in ((DIGITS, "T12"), (MNIST, "The same")):
        lag = one(content, "T12", "autocorrelation")
        assert significant(lag["value"]) in section(start)
    coupled = [
        f"{100 * next(row['value'] for row in rows(content, 'T13') if row['value']):.0f} %"
        for content in (DIGITS, MNIST)
    ]
    assert f"differ by {coupled[0]} of the distance" in section("T13")
    assert f"differ by {coupled[1]} of the distance ({coupled[0]} on digits)" in section("The same")


def test_the_variances_of_known_distributions():
    text = section("T14")
    found = rows(DIGITS, "T14", "variance / closed form")
    off = [abs(row["value"] - 1) for row in found]
    inside = sum(gap < row["error"] for gap, row in zip(off, found, strict=True))
    assert (len(found), inside) == (6, 5)
    assert "In six settings" in text
    assert f"at most {100 * max(off):.1f} %, in five of them by less than the 95 % interval of" in text
    assert {f"interval of {100 * row['error']:.1f} %" in text for row in found} == {True}
    average = one(DIGITS, "T14", "ergodic average")
    assert f"{average['value']:.3f} ± {average['error']:.3f}" in text


def test_what_holds_on_mnist():
    text = section("The same on MNIST")
    verdicts = [row["verdict"] for row in MNIST["rows"]]
    holds, fails, neither = (verdicts.count(each) for each in ("holds", "fails", "not applicable"))
    assert f"{holds} lines hold, {fails} fail, {neither} do not apply" in text
    proved, seen = MNIST["constants"]["proved"], MNIST["constants"]["estimated"]
    assert f"$L$ {proved['lipschitz']:.0f} and $\\beta$ {round(proved['smooth'], -2):,.0f} against" in text
    assert f"against {seen['lipschitz']:.2f} and {seen['smooth']:.2f} seen" in text
    assert f"{sum(MNIST['seconds'].values()) / 60:.0f} minutes" in text
