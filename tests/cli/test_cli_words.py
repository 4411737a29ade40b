"""How the words of a command line become values."""

import pytest
from command_line import refused
from commands import given, train_job


def test_a_flag_that_took_a_value_still_does_and_says_what_to_write(capsys):
    assert given("evaluate", "run", "--checks", "true", "--cascade", "false") == given(
        "evaluate", "run", "--checks", "--no-cascade"
    )
    err = capsys.readouterr().err
    assert "--checks true is deprecated: write --checks" in err
    assert "--cascade false is deprecated: write --no-cascade" in err
    made = train_job("digits-linf-pgdat", "--train.channels_last", "true", "--evaluate.last", "false")
    assert (made.train.channels_last, made.evaluate.last) == (True, False)
    assert made == train_job("digits-linf-pgdat", "--train.channels-last", "--evaluate.no-last")
    for word, value in (("--channels-last", True), ("--no-channels-last", False)):
        assert given("certify", "run", word)["channels_last"] is value
    assert given("certify", "run")["channels_last"] is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seed", "x"], "--seed must be an integer, got 'x'"),
        (["--limit", "q"], "--limit must be an integer or all, got 'q'"),
        (["--norm", "l3"], "--norm must be one of"),
        (["--mean", "0.5", "x"], "--mean must be numbers, got '0.5 x'"),
    ],
)
def test_a_value_of_another_type_is_said_in_words(words, line, capsys):
    err = refused(capsys, "evaluate", "run", *words)
    assert line in err
    assert "None" not in err


@pytest.mark.parametrize(
    ("field", "wanted"), [("--schedule.milestones", "integers"), ("--schedule.factors", "numbers")]
)
def test_several_values_of_another_type_are_said_in_words(field, wanted, capsys):
    assert f"{field} must be {wanted}, got '1 x'" in refused(capsys, "train", "digits-linf-pgdat", field, "1", "x")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["compare", "RECIPES", "--seeds", str(10**30)], "--seeds must be at most 10,000, got an integer of 100 bits"),
        (["compare", "RECIPES", "--backend", "ray", "--gpus", "nan"], "--gpus of at least 0, got 1 and nan"),
        (["compare", "RECIPES", "--backend", "slurm", "--gpus", "inf"], "--gpus of at least 0, got 1 and inf"),
        (["train", "digits-linf-pgdat", "--schedule.kind", "multistep", "--schedule.milestones=-1"], "milestones must"),
        (["evaluate", "zoo:digits-linf-crown-ibp", "--attacks", "PGD(eps=[0.1, 0.2])"], "several eps: write one"),
    ],
)
def test_numbers_that_nothing_can_use_are_refused_in_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipes = ["digits-linf-pgdat", "digits-linf-standard"]
    err = refused(capsys, *(part for word in words for part in (recipes if word == "RECIPES" else [word])))
    assert line in err
    assert len(err.strip().splitlines()) == 1


def test_none_is_a_name_and_a_list_needs_a_value(capsys):
    assert given("train", "digits-linf-pgdat", "--name", "none")["name"] == "none"
    assert "--attacks needs a value" in refused(capsys, "evaluate", "run", "--attacks", "--quiet")
    assert "--attacks needs a value" in refused(capsys, "evaluate", "run", "--attacks")


@pytest.mark.parametrize("spelling", [["--train.average", "none"], ["--train.average=none"]])
def test_none_is_a_word_where_it_is_one_of_the_choices(spelling):
    job = train_job("digits-linf-atent-plus", *spelling, "--evaluate.limit", "none")
    assert job.train.average == "none"
    assert job.evaluate.limit is None


def test_none_is_a_word_where_it_is_one_of_the_names():
    """`--data.augment none` and `--train.shard none` name a choice; `--data.limit` and others without such a name mean
    no value."""
    from atent.cli.jobs import recipe_job

    words = ["--data.augment", "none", "--train.shard", "none", "--data.validation", "none"]
    job, _ = recipe_job("own-linf-atent", words, prog="atent train")
    assert (job.data.augment, job.train.shard, job.data.validation) == ("none", "none", None)
