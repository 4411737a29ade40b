import contextlib
import dataclasses

import pytest
from kit import BALLS, threat_in

from atent.attacks import (
    ALMA,
    ATTACKS,
    DDN,
    FAB,
    FGSM,
    FMN,
    IFGS,
    PGD,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    EoT,
    Langevin,
    Square,
)  # fmt: skip
from atent.attacks.base import Attack
from atent.attacks.spec import check_names, is_standard, label, labelled, parse, relabelled, spell
from atent.messages import deprecated
from atent.threat import COUNTS, Threat

LINF, L2 = Threat("linf", "8/255"), Threat("l2", 0.5)

SPOKEN = {
    "FGSM": [{}],
    "PGD": [
        {}, {"steps": 40, "step_size": 0.01, "restarts": 5}, {"loss": "dlr", "keep": "best", "start": "cube"},
        {"loss": "kl", "start": "gaussian", "start_noise": 0.01}, {"momentum": 0.75},
    ],
    "IFGS": [{}, {"steps": 3, "step_size": 0.01}],
    "CarliniWagner": [{}, {"steps": 100, "confidence": 0.5, "abort_early": True}],
    "DeepFool": [{}, {"classes": 3}],
    "DDN": [{}, {"steps": 100, "levels": 256}],
    "FMN": [{}, {"steps": 100, "final_step_size": 0.05}],
    "FAB": [{}, {"targets": 3, "restarts": 2, "beta": 0.5}, {"targets": 9, "eta": 1.1}],
    "Square": [{}, {"queries": 10, "p_init": 0.3, "loss": "ce"}],
    "ALMA": [{}, {"steps": 100, "alpha": 0.5, "penalty": "p3", "constraint": "margin"}],
    "APGD": [{}, {"loss": "dlr-targeted", "targets": 3, "rho": 0.5}, {"loss": "dlr", "eot": 5, "start": "zero"}],
    "AutoAttack": [{}, {"version": "rand", "eot": 3}, {"steps": 5, "targets": 3, "queries": 10}],
    "EoT": [{}, {"attack": "PGD(steps=3, loss=dlr)", "samples": 4}, {"attack": "FGSM"}],
    "Transfer": [{"source": "runs/mine"}, {"source": "mine.net:build", "attack": "APGD(loss='dlr-targeted')"}],
    "Langevin": [
        {}, {"variant": "published", "noise": 1e-9, "gamma": 0.0}, {"effective_noise": 0.12, "steps": 7},
        {"temperature": 0.25},
        {"projection": "every", "gradient": "raw", "anchor": "scaled", "start": "zero", "restarts": 2},
    ],
}  # fmt: skip


def norms_of(name):
    """The norms in which an attack is spelled here: its balls, or what else it has."""
    own = ATTACKS[name].norms
    return [norm for norm in BALLS if norm in own] or list(own)


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ATTACKS for norm in norms_of(name)])
def test_what_is_spelled_is_parsed(name, norm):
    threat = threat_in(norm, 3 if norm in COUNTS else "8/255", box=(-1, 2))
    for settings in SPOKEN.get(name, [{}]):
        attack = ATTACKS[name](threat=threat, **settings)
        assert parse(spell(attack), threat, ATTACKS) == attack
        other = Threat("l2", 3.0, (-1, 2))
        assert parse(spell(attack, threat=True), other, ATTACKS) == attack
        assert "\n" not in spell(attack)


def test_the_spelling_leaves_out_what_is_default():
    assert spell(FGSM(LINF)) == "FGSM"
    assert spell(PGD(LINF, steps=20)) == "PGD"
    assert spell(PGD(LINF, steps=40, step_size=0.01, restarts=5)) == ("PGD(steps=40, step_size=0.01, restarts=5)")
    assert spell(PGD(L2, start="cube"), threat=True) == "PGD(start=cube, norm=l2, eps=0.5)"


def test_values():
    assert parse("FGSM", LINF, ATTACKS) == FGSM(LINF)
    assert parse(" PGD() ", LINF, ATTACKS) == PGD(LINF)
    assert parse("PGD(start='cube', loss=margin)", LINF, ATTACKS) == PGD(LINF, start="cube", loss="margin")
    assert parse("PGD(step_size=2/255, steps=10)", LINF, ATTACKS).step_size == 2 / 255
    assert parse("PGD(step_size=none)", LINF, ATTACKS).step_size is None
    assert parse("PGD(step_size=None)", LINF, ATTACKS).step_size is None
    assert parse("Langevin(noise=1e-9)", LINF, ATTACKS).noise == 1e-9


def test_the_text_can_replace_the_threat():
    assert parse("PGD(eps=4/255)", LINF, ATTACKS).threat == Threat("linf", "4/255")
    assert parse("PGD(eps='4/255')", LINF, ATTACKS).threat == Threat("linf", 4 / 255)
    wide = Threat("linf", 0.1, (0, 2))
    assert parse("PGD(norm=l2, eps=1)", wide, ATTACKS).threat == Threat("l2", 1, (0, 2))
    assert parse("PGD(norm='l2', eps=0.5)", None, ATTACKS) == PGD(L2)


BAD = [
    ("", "is not valid: write it as a call"),
    ("PGD(", "is not valid"),
    ("PGD(steps=3", "is not valid"),
    ("PGD(20)", "is not valid"),
    ("PGD-20", "is not valid"),
    ("PGD; FGSM", "is not valid"),
    ("[PGD]", "is not valid"),
    ("atent.PGD()", "is not valid"),
    ("PGD\0", "is not valid"),
    ("(" * 500, "is not valid"),
    ("PGG(steps=3)", "unknown attack 'PGG': did you mean 'PGD'?"),
    ("pgd", "unknown attack 'pgd': did you mean 'PGD'?"),
    ("PGD(stepsize=0.1)", "unknown field of PGD 'stepsize': did you mean 'step_size'?"),
    ("PGD(threat=1)", "unknown field of PGD 'threat'"),
    ("PGD(**{'steps': 3})", "unknown field of PGD"),
    ("PGD(steps=1, steps=2)", "gives steps twice"),
    ("PGD(steps=0)", "steps must be at least 1, got 0"),
    ("PGD(steps=2.5)", "steps must be an integer, got 2.5"),
    ("PGD(steps=many)", "steps must be an integer, got 'many'"),
    ("PGD(step_size=1/0)", "is not a plain value"),
    ("PGD(step_size=a/b)", "is not a plain value"),
    ("PGD(steps=3*7)", "is not a plain value"),
    ("PGD(steps={[]: 1})", "is not a plain value"),
    ("PGD(start=left)", "start 'left' is not known"),
    ("PGD(norm=l7)", "unknown norm 'l7'"),
    ("PGD(eps=-1)", "eps must be finite and at least 0, got -1"),
    ("PGD(eps=wide)", "eps 'wide' is not a number"),
    ("Langevin(noise=1, effective_noise=1)", "exclude each other"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        parse(text, LINF, ATTACKS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_threat_must_come_from_somewhere():
    for text in ("PGD", "PGD(norm=l2)", "PGD(eps=1)"):
        with pytest.raises(ValueError, match="has no threat: add norm='linf'"):
            parse(text, None, ATTACKS)


@pytest.mark.parametrize("code", [
    "PGD(steps=open('{p}', 'w').write('x'))",
    "open('{p}', 'w')",
    "PGD(steps=[open('{p}', 'w') for i in 'a'])",
    "__import__('pathlib').Path('{p}').touch()",
    "PGD(step_size=__import__('pathlib').Path('{p}').touch()/2)",
    "PGD(steps=(lambda: open('{p}', 'w'))())",
])  # fmt: skip
def test_no_code_is_run(code, tmp_path):
    path = tmp_path / "touched"
    text = code.replace("{p}", str(path))
    with contextlib.suppress(TypeError):
        exec(text.replace("PGD(", "dict("))  # it would do harm
    assert path.exists()
    path.unlink()
    with pytest.raises(ValueError, match=r"is not valid|is not a plain value|unknown attack"):
        parse(text, LINF, ATTACKS)
    assert not path.exists()


def test_labels():
    assert label(FGSM(LINF)) == "FGSM"
    assert label(PGD(LINF)) == "PGD-20"
    assert label(PGD(LINF, steps=40, restarts=5)) == "PGD-40 x 5"
    assert label(PGD(LINF, steps=100, restarts=5, loss="margin")) == "PGD-100 x 5 margin"
    assert label(PGD(LINF, loss="kl")) == "PGD-20 kl"
    assert label(PGD(LINF, momentum=0.75, restarts=2, loss="margin")) == "PGD-20 x 2 margin momentum 0.75"
    assert label(IFGS(LINF)) == "IFGS-10"
    assert label(IFGS(LINF, step_size=1 / 255)) == "IFGS-10 (step_size 0.00392157)"
    assert label(PGD(LINF, start="zero", keep="best")) == "PGD-20 (start zero, keep best)"
    assert label(FAB(LINF, targets=9)) == "FAB-T-100"
    assert label(FAB(LINF, targets=2, stop_at_eps=True)) == "FAB-T-100 (targets 2, stop_at_eps True)"
    assert label(Square(LINF, p_init=0.1)) == "Square-5000 (p_init 0.1)"
    assert label(FMN(L2, projection="ball")) == "FMN-1000 (projection ball)"
    assert label(AutoAttack(LINF)) == "AutoAttack"
    assert label(AutoAttack(LINF, steps=1, targets=1, queries=1)) == "AutoAttack (steps 1, targets 1, queries 1)"
    assert label(AutoAttack(LINF, version="rand", eot=2)) == "AutoAttack rand (eot 2)"
    assert label(Langevin(LINF)) == "ATENT-20"
    assert label(CarliniWagner(L2, steps=100)) == "CW-9x100"
    assert label(DDN(L2)) == "DDN-1000"
    assert label(FMN(LINF, steps=30)) == "FMN-30"
    assert label(ALMA(L2)) == "ALMA-1000"
    assert label(DeepFool(L2)) == "DeepFool-50"
    attacks = [PGD(LINF), PGD(L2), FGSM(LINF)]
    named = labelled(attacks)
    assert list(named.values()) == attacks
    assert list(named) == ["PGD-20 linf 8/255", "PGD-20 l2 0.5", "FGSM linf 8/255"]
    weak = PGD(LINF, step_size=0.001)
    assert list(labelled([PGD(LINF), weak])) == ["PGD-20", "PGD-20 (step_size 0.001)"]
    near = PGD(LINF, step_size=0.001 + 1e-12)
    assert list(labelled([weak, near])) == [spell(weak, threat=True), spell(near, threat=True)]
    with pytest.raises(ValueError, match="is listed twice"):
        labelled([PGD(LINF), PGD(LINF)])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_label_says_every_field_that_is_not_as_by_default(name):
    threat = threat_in(norms_of(name)[0])
    for settings in SPOKEN.get(name, [{}]):
        attack = ATTACKS[name](threat=threat, **settings)
        for field, value in settings.items():
            usual = {f.name: f.default for f in dataclasses.fields(attack)}[field]
            try:
                plain = dataclasses.replace(attack, **{field: usual})
            except ValueError:  # one that another field, or the attack, needs
                continue
            assert value == usual or label(plain) != label(attack), (field, label(attack))


def test_the_bare_name_is_for_the_standard_settings():
    weak = AutoAttack(LINF, queries=1)
    said = r"is reserved for AutoAttack .* got AutoAttack\(queries=1\): name it"
    with pytest.raises(ValueError, match=said) as error:
        check_names({"AutoAttack": weak})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="standard settings, got PGD"):
        check_names({"autoattack": PGD(LINF)})
    check_names({"AutoAttack": AutoAttack(LINF), "weak": weak, label(weak): weak})
    for name in ("Auto-Attack", "auto attack", "AutoAttack standard", "AutoAttack (Linf)", "Standard AutoAttack"):
        check_names({name: AutoAttack(LINF)})
        for attack in (weak, PGD(LINF)):
            with pytest.raises(ValueError, match="is reserved for AutoAttack"):
                check_names({name: attack})


@pytest.mark.parametrize("name", ["", " ", 1, None, "a\nb", "Auto\u200bAttack"])
def test_the_name_of_an_attack_is_a_line_of_text(name):
    with pytest.raises(ValueError, match="name of an attack must be one line of text") as error:
        check_names({name: PGD(LINF)})
    assert "name it 'PGD-20'" in str(error.value)


def test_a_threat_without_a_limit_has_a_name_too():
    assert list(labelled([DDN(Threat("l2", "inf")), PGD(L2)])) == ["DDN-1000 l2 inf", "PGD-20 l2 0.5"]


def test_stored_attacks_get_the_labels_of_today():
    threat = LINF.plain()
    old = {
        "PGD-40": {"attack": "PGD(steps=40, step_size=0.01)", "threat": threat},
        "FGSM": {"attack": "FGSM", "threat": threat},
    }
    assert list(relabelled(old)) == ["PGD-40 (step_size 0.01)", "FGSM"]
    assert list(relabelled(old).values()) == list(old.values())
    mine = {"mine": {"attack": "Mine", "threat": threat}}
    assert relabelled(mine) == mine


def test_every_attack_takes_a_threat_first():
    for cls in ATTACKS.values():
        assert dataclasses.fields(cls)[0].name == "threat"


@dataclasses.dataclass(frozen=True)
class Own(Attack):
    """Somebody's own, with the fields that labels say for other classes."""

    threat: Threat
    version: str = "standard"
    steps: int = 3
    queries: int = 5
    momentum: int = 0
    search_steps: int = 0
    restarts: int = 1
    attack: str = "x"

    def search(self, oracle, x, y, streams):
        return x


Own.__name__ = Own.__qualname__ = "AutoAttack"


def test_labels_of_a_user_s_attack_keep_every_field_and_leave_the_standard_name_alone():
    # Before: all of these were called "AutoAttack-3", and the text was that of AutoAttack itself.
    own = Own(Threat("linf", 0.1))
    assert label(own) == f"{__name__}:AutoAttack-3"
    assert not is_standard(spell(own))
    changes = ({"version": "b"}, {"queries": 6}, {"momentum": 1}, {"search_steps": 2}, {"restarts": 0}, {"attack": "y"})
    assert len({label(own), *(label(dataclasses.replace(own, **change)) for change in changes)}) == 1 + len(changes)


def test_the_bare_name_of_an_attack_is_that_of_its_class_of_the_library():
    """Before: an attack of a notebook with the name Square was stored as Square, and read as that with 5000 queries."""

    @dataclasses.dataclass(frozen=True)
    class Square(Attack):
        passes = 1

        def search(self, oracle, x, y, streams):
            return x

    own = Square(LINF)
    assert spell(own).startswith(f"{__name__}:")
    assert label(own) == spell(own)
    stored = {label(own): {"attack": spell(own), "threat": LINF.plain()}}
    assert list(relabelled(stored)) == list(stored)


def test_former_names_of_settings_are_read_with_a_line(capsys):
    deprecated.cache_clear()
    assert Langevin(LINF, pull="scaled") == Langevin(LINF, anchor="scaled")
    assert EoT(LINF, "FGSM", draws=3) == EoT(LINF, "FGSM", samples=3)
    assert capsys.readouterr().err.splitlines() == [
        "atent: pull of Langevin is deprecated: write anchor",
        "atent: draws of EoT is deprecated: write samples",
    ]
    with pytest.raises(ValueError, match="draws and samples are the same setting"):
        EoT(LINF, "FGSM", draws=3, samples=3)


def test_a_former_name_of_a_field_is_read(capsys):
    made = parse('EoT(attack="PGD(steps=3)", draws=4)', Threat("linf", 0.1), ATTACKS)
    assert made.samples == 4
    assert spell(made) == "EoT(attack='PGD(steps=3)', samples=4)"
