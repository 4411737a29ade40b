"""Norms in another case, such as RobustBench's Linf, at each place that takes a norm."""

import dataclasses

import pytest
from commands import given, train_job

from atent.attacks import ATTACKS, PGD
from atent.attacks.spec import parse
from atent.cli.words import options_of, spelled
from atent.experiments.recipes import job, read_recipe
from atent.experiments.target import EvaluateSettings
from atent.threat import Threat


def test_an_attack_as_text_has_the_norm_in_lower_case():
    l2 = parse("PGD(norm=L2, eps=0.5)", None, ATTACKS)
    assert l2 == PGD(Threat("l2", 0.5))
    assert parse("PGD(norm=Linf)", Threat("linf", 0.1), ATTACKS) == PGD(Threat("linf", 0.1))
    with pytest.raises(ValueError, match="norm l2 without its eps"):
        parse("PGD(norm=L2)", Threat("linf", 0.1), ATTACKS)


def test_settings_have_the_norm_in_lower_case():
    assert EvaluateSettings(norm="Linf") == EvaluateSettings(norm="linf")
    assert dataclasses.replace(EvaluateSettings(), norm="L2").norm == "l2"
    with pytest.raises(ValueError, match=r"^norm 'l3' is not known: use one of linf, l2, l1, l0, patch$"):
        EvaluateSettings(norm="l3")


def test_an_option_takes_a_norm_in_any_case():
    known = options_of(EvaluateSettings, "--evaluate.")
    assert spelled(["--evaluate.norm", "L2", "--evaluate.eps", "0.5"], known)[1] == "l2"
    assert spelled(["--evaluate.norm=Linf"], known) == ["--evaluate.norm", "linf"]
    assert spelled(["--evaluate.norm", "L3"], known)[1] == "L3"


def test_a_recipe_and_the_command_line_record_the_norm_in_lower_case():
    plain = read_recipe("digits-linf-pgdat")
    tables = {**plain, "method": {**plain["method"], "threat": {**plain["method"]["threat"], "norm": "Linf"}}}
    tables["evaluate"] = {**plain.get("evaluate", {}), "norm": "LINF"}
    assert job(tables, "digits-linf-pgdat").method.threat.norm == "linf"
    assert job(tables, "digits-linf-pgdat").evaluate.norm == "linf"
    words = ["--evaluate.norm", "L2", "--evaluate.eps", "0.5"]
    assert train_job("digits-linf-pgdat", *words) == train_job("digits-linf-pgdat", words[0], "l2", *words[2:])
    job_l2 = train_job("digits-linf-pgdat", "--method.threat.norm", "L2", "--method.threat.eps", "0.5")
    assert job_l2.method.threat.norm == "l2"
    assert given("evaluate", "run", "--norm", "Linf") == given("evaluate", "run", "--norm", "linf")
    assert given("certify", "run", "--norm", "L2") == given("certify", "run", "--norm", "l2")
