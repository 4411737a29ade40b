"""Attacks at several radii."""

from dataclasses import dataclass

import pytest
from cascades import THREAT

from atent.attacks import FGSM, PGD, Langevin
from atent.evaluate import evaluate, sweep
from atent.threat import Threat


def test_a_sweep_is_the_attack_at_each_radius(conv_net, batch):
    x, y = batch(40)
    model, attacks = conv_net(), [PGD(THREAT, steps=3), Langevin(THREAT, steps=3, noise=0.2)]
    rows = sweep(model, x, y, attacks, ["8/255", 0.01, 0.1], seed=5, batch=16)
    assert [(r["attack"], r["radius"]) for r in rows] == [
        (name, radius) for name in ("PGD-3", "ATENT-3 (noise 0.2)") for radius in (0.01, 8 / 255, 0.1)
    ]
    assert rows[1]["threat"] == "linf 8/255"
    assert {r["norm"] for r in rows} == {"linf"}
    for row in rows:
        attack = (PGD if row["attack"] == "PGD-3" else Langevin)(
            Threat("linf", row["radius"]), steps=3, **({} if row["attack"] == "PGD-3" else {"noise": 0.2})
        )
        alone = evaluate(model, x, y, [attack], seed=5)
        assert row["robust"] == alone.worst
        assert row["clean"] == alone.clean
    for name in ("PGD-3", "ATENT-3 (noise 0.2)"):
        counts = [r["monotone"]["k"] for r in rows if r["attack"] == name]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]


@dataclass(frozen=True)
class Odd(FGSM):
    """FGSM that forgets to attack at large radii."""

    def search(self, oracle, x, y, streams):
        return x if self.threat.eps > 0.08 else super().search(oracle, x, y, streams)


def test_what_a_smaller_radius_fooled_stays_fooled(conv_net, batch):
    x, y = batch(40)
    rows = sweep(conv_net(), x, y, {"odd": Odd(THREAT)}, [0.1, 0.05, 0])
    raw, monotone = ([r[key]["k"] for r in rows] for key in ("robust", "monotone"))
    clean = rows[0]["clean"]["k"]
    assert raw == [clean, raw[1], clean]
    assert raw[1] < clean
    assert monotone == [clean, raw[1], raw[1]]


@pytest.mark.parametrize(("attacks", "radii", "text"), [
    ([FGSM(THREAT)], [], "one attack and one radius at least"),
    ([], [0.1], "one attack and one radius at least"),
    ([FGSM(THREAT)], [0.5, "1/2"], "radius 0.5 is given twice"),
    ([FGSM(THREAT)], [-1], "radius must be finite and at least 0, got -1"),
    ([FGSM(THREAT)], ["8/x"], "radius '8/x' is not a number"),
    ([FGSM(THREAT), FGSM(Threat("l2", 1))], [0.1], "two attacks are called FGSM"),
    ([FGSM(Threat("linf", [0.1] * 4))], [0.1], "a sweep has one radius for all samples, but FGSM has an eps for each"),
])  # fmt: skip
def test_bad_sweeps_are_refused(attacks, radii, text, conv_net, batch):
    with pytest.raises(ValueError, match=text):
        sweep(conv_net(), *batch(4), attacks, radii)
