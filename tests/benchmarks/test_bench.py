"""`atent bench`: each section at toy size, the interleaved timer, and what it counts."""

import json
import math
import time
from pathlib import Path

import pytest
import tables as benchmark_tables
import torch
from kit import batch, network
from torch import nn

from atent import Threat
from atent.attacks import PGD
from atent.bench import Plan, as_markdown, attacks, certify, growth, methods, rivals, roof_at, roofline, run, tables
from atent.bench import transcription as two_ways
from atent.bench.kept import PART
from atent.bench.machine import caches, instruction_sets
from atent.bench.passes import bare, passes_of, problem, saved_bytes, units, work_of
from atent.bench.plan import Case, Omitted, Section, Sizes
from atent.bench.timing import Effort, interleaved, quartiles
from atent.cli import main
from atent.experiments import migrate
from atent.experiments.results import BenchFile
from atent.experiments.results.bench import BenchCase, BenchRow
from atent.integrations import packages
from atent.methods import ATENT, MMA, PGDAT, TRADES, Free, Standard
from atent.models import build

TOY = Sizes(("digits_cnn",), 8, 2, 4, 200, (32, 64))
SHORT = Effort(0.0)
ROOT = Path(__file__).parents[2]


def plan(**given):
    return Plan(**{"quick": True, "sizes": TOY, **given})


def silent(_amount, _text=""):
    return None


# ---- the timer


def test_rounds_turn_the_order_and_stop_when_the_time_is_spent():
    seen = []
    works = {name: lambda name=name: seen.append(name) for name in "abc"}
    found = interleaved(works, Effort(0.0, least=4), pairs={"b": "a"})
    assert seen == [*"abc", *"abc", *"bca", *"cab", *"abc"]
    assert {name: len(found.cpu[name]) for name in works} == dict.fromkeys("abc", 4)
    assert [found.row(name).ratio is None for name in "abc"] == [True, False, True]


def test_rounds_stop_when_the_ratio_is_known(monkeypatch):
    """A work that costs twice another: seven rounds, where the time would allow many more."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def work():
            now[0] += seconds

        return work

    works = {"one": takes(1.0), "two": takes(2.0)}
    found = interleaved(works, Effort(3600.0), pairs={"two": "one"})
    ratio = found.ratio("two")
    assert len(found.cpu["one"]) == 7
    assert (ratio.base, ratio.mean, ratio.low, ratio.high) == ("one", *[pytest.approx(2.0)] * 3)
    assert found.per_second("two", 10) == pytest.approx(5.0)


def test_quartiles_are_those_of_the_rounds():
    found = quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.q25, found.median, found.q75, found.n) == (2.0, 3.0, 4.0, 5)
    assert quartiles([7.0]).q25 == 7.0


# ---- passes


@pytest.mark.parametrize(
    ("method", "cost", "forwards"),
    [
        (Standard(), 3, 1),
        (PGDAT(Threat("linf", 0.1), steps=3), 9, 4),
        # one pass at each inner iterate gives both gradients
        (ATENT(Threat("linf", 0.1), steps=3), 11, 4),
        (TRADES(Threat("linf", 0.1), steps=3), 13, 6),
        (MMA(Threat("linf", 0.1), steps=3, bisection=5), 17, 10),
        (Free(Threat("linf", 0.1)), 3, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_passes_are_those_of_the_equations(method, cost, forwards):
    model, (x, y) = network(True, 0.3), batch()
    found = passes_of(methods.step_of(method, model, x, y), model)
    assert units(found, len(x)) == cost
    assert sum(p.n for p in found) == forwards * len(x)
    # The bare loop makes the same ones.
    again = passes_of(bare(found, model, x, y), model)
    assert units(again, len(x)) == cost
    assert [(p.n, p.training) for p in again] == [(p.n, p.training) for p in found]
    assert all(p.requires_grad for p in model.parameters())


def test_flop_and_bytes_of_a_matrix_product():
    a, b = torch.rand(3, 5), torch.rand(5, 7)
    flops, moved = work_of(lambda: a @ b)
    assert flops == 2 * 3 * 5 * 7
    assert moved == 4 * (15 + 35 + 21)
    # views move nothing
    assert work_of(lambda: a.t()[:2]) == (0.0, 0.0)


def test_saved_bytes_count_a_storage_once_and_no_weights():
    model, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Sigmoid()), torch.rand(2, 4)
    # the input for the weight's gradient, and the output of the sigmoid
    assert saved_bytes(lambda: model(x).sum().backward(), model) == 2 * x.numel() * 4


# ---- sections


def measured(section, name):
    case = next(case for case in section.cases if case.name == name)
    return case.measure(SHORT, silent)


def test_methods_stand_beside_their_bare_passes():
    section = methods.section(plan())
    assert {"CROWNIBP", "Dual", "SmoothAdv"} <= set(section.omitted)
    case = measured(section, "digits_cnn, linf")
    rows = {row.name: row for row in case.rows}
    assert rows["PGDAT"].ratio.base == "PGDAT (bare passes)"
    assert rows["PGDAT"].figures["units"] == 2 * 2 + 3
    assert rows["EntropySGD"].figures["forwards"] == 5
    assert all(rows[f"{name} (bare passes)"].ratio is None for name in ("ATENT", "TRADES", "EntropySGD"))


def test_three_ways_to_the_step_agree_before_they_are_timed(monkeypatch):
    section = two_ways.section(plan(networks=("small_cnn",)))
    case = measured(section, "small_cnn, linf")
    rows = {row.name: row for row in case.rows}
    assert max(row.figures["difference"] for row in case.rows) < two_ways.TOLERANCE
    assert (rows["atent"].figures["forwards"], rows["authors"].figures["forwards"]) == (3, 4)
    assert rows["authors"].figures["saved_bytes"] > 1.5 * rows["atent"].figures["saved_bytes"]
    wrong = {**two_ways.STEPS, "atent": lambda *given: 2 * two_ways.atent(*given)}
    monkeypatch.setattr(two_ways, "STEPS", wrong)
    with pytest.raises(ArithmeticError, match="atent and authors differ"):
        measured(section, "small_cnn, linf")


def peer(model, x, y, threat):
    """An attack of another package, which is this library's."""
    return PGD(threat, steps=40)(model, x, y)


def failing(model, x, y, threat):
    raise TypeError("perturb() takes\nno such argument")


def test_attacks_meet_on_the_same_images(monkeypatch):
    monkeypatch.setattr(rivals, "installed", lambda: {"foolbox": "0", "ART": "0"})
    threat = Threat("linf", 0.15)
    contest = attacks.Contest("PGD-40", PGD(threat, steps=40), {"foolbox": peer, "ART": failing, "adv-lib": peer})
    monkeypatch.setattr(attacks, "contests", lambda norm, quick: [contest] if norm == "linf" else [])
    monkeypatch.setattr(attacks, "trained", lambda norm, images, device: attacks.Target(*problem("digits_cnn", images)))
    section = attacks.section(plan())
    assert set(section.omitted) == {"pyautoattack", "adv-lib", "torchattacks"}
    case = measured(section, "PGD-40, linf")
    ours, other = case.rows
    assert (ours.name, other.name, other.ratio.base) == ("atent", "foolbox", "atent")
    assert ours.robust == other.robust
    assert ours.robust.n == 4
    assert case.settings["failed"] == {"ART": "TypeError: perturb() takes no such argument"}


def test_an_attack_that_no_package_answers_is_left_out():
    contest = attacks.Contest("PGD-40", PGD(Threat("linf", 0.15), steps=2), {"ART": failing})
    target = attacks.Target(*problem("digits_cnn", 4))
    with pytest.raises(Omitted, match="ART failed"):
        attacks._measure(lambda: target, contest, SHORT, silent)


def test_a_point_counts_where_it_is_in_the_box_within_eps_and_misclassified():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]))
    x, y = torch.full((4, 1, 1, 1), 0.5), torch.tensor([1, 1, 1, 0])
    x_adv = torch.tensor([0.0, -0.5, 0.4, 0.5]).view(4, 1, 1, 1)
    norm = rivals.norms_of(model, x, y, x_adv, Threat("linf", 0.6), 1e-5)
    # adversarial, outside the box, classified correctly, misclassified from the start
    assert norm.tolist() == [0.5, math.inf, math.inf, 0.0]


def test_the_target_of_the_attacks_learns():
    before = torch.random.get_rng_state()
    found = attacks.trained("linf", 50, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    # ten classes, of which a guess has a tenth
    assert (found.model(found.x).argmax(1) == found.y).double().mean() > 0.3


def test_certificates_stand_beside_forwards():
    section = certify.section(plan())
    case = measured(section, "smoothing, digits_cnn")
    assert [row.name for row in case.rows if row.ratio is None] == ["forwards alone"]
    bounds = measured(section, "bounds, digits_cnn")
    assert {row.name for row in bounds.rows} == {"forwards alone", *certify.BOUNDS}


def test_the_usual_loop_estimates_the_votes_of_the_certificate():
    model, x, _ = problem("digits_cnn", 2)
    n = 400
    votes = certify.Smoothed(model.eval(), certify.SIGMA).votes(x, n).double() / n
    for image, (top, _, share) in enumerate(certify.usual(model, x, certify.SIGMA, 50, n, 100)):
        if top >= 0:
            # five standard errors of a difference of two shares
            error = max((share * (1 - share) / n) ** 0.5, 1 / n)
            assert abs(float(votes[image, top]) - share) < 5 * 2**0.5 * error


def test_growth_has_an_exponent_for_each_quantity():
    section = growth.section(plan())
    assert [case.name for case in section.cases] == ["K", "batch", "width", "images"]
    case = measured(section, "K")
    assert case.growth.low <= case.growth.exponent <= case.growth.high
    assert [row.figures["value"] for row in case.rows] == [2, 4, 8, 16]
    images = growth.convolutions(16)(torch.rand(2, 1, 8, 8))
    assert images.shape == (2, 10)


def test_the_roof_is_the_best_product_and_the_bandwidth():
    section = roofline.section(plan())
    peak, passes = (measured(section, name) for name in ("peak", "digits_cnn"))
    by = {row.name: row.figures for row in passes.rows}
    # to the inputs: every layer but the weights' own products, so less than to the weights of all layers
    assert by["forward"]["flops"] < by["forward and gradient of the inputs"]["flops"]
    layers = [(1, 16, 9, 64), (16, 32, 16, 16), (32, 32, 16, 4)]
    convolutions = sum(2 * a * b * k * places for a, b, k, places in layers)
    assert by["forward"]["flops"] == 8 * (convolutions + 2 * (128 * 128 + 128 * 10))
    found = roofline.roof(type("Section", (), {"cases": [peak, passes]}))
    products = [row.figures["flops_per_second"] for row in peak.rows if "flops_per_second" in row.figures]
    assert (found.flops, len(products)) == (max(products), 2)
    assert found.bandwidth == peak.rows[-1].figures["bytes_per_second"]


# ---- the whole


@pytest.fixture(scope="module")
def result():
    return run(plan(sections=("growth", "roofline"), minutes=0.001), progress=False)


def test_a_result_comes_back_from_its_file(result, tmp_path):
    from atent.bench import JSON, PAGE, PICTURE, write

    written = write(tmp_path, result)
    assert [path.name for path in written] == [JSON, PAGE, PICTURE]
    assert migrate.read(tmp_path / JSON, BenchFile) == result
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert result.clock == "cpu"
    assert {"instruction_sets", "caches", "packages", "cores"} <= set(result.machine)
    content = json.loads((tmp_path / JSON).read_text())
    with pytest.raises(ValueError, match="version 99"):
        migrate.bench({**content, "schema_version": 99})
    with pytest.raises(ValueError, match="no version of atent wrote"):
        migrate.bench({**content, "schema_version": 0})


def test_tables_have_a_row_for_what_was_measured(result):
    growth_table, roof_table = tables(result)
    assert list(growth_table.cases) == ["K", "batch", "width", "images"]
    assert sum("exponent" in note for note in growth_table.notes) == 4
    row = next(row for case in result.sections["roofline"].cases for row in case.rows if "intensity" in row.figures)
    share = row.figures["flops_per_second"] / roof_at(result, row.figures["intensity"])
    cells = next(cells for cells in roof_table.cases["digits_cnn"] if cells[0] == row.name)
    assert cells[-1] == f"{100 * share:.0f}"
    assert as_markdown(result).count("## ") == 2


def test_the_roof_slopes_by_the_bandwidth_and_is_flat_at_the_peak(result):
    ridge = result.roof.flops / result.roof.bandwidth
    assert roof_at(result, ridge / 2) == pytest.approx(result.roof.flops / 2)
    assert roof_at(result, 100 * ridge) == result.roof.flops


def test_time_that_a_case_leaves_goes_to_the_later_ones(monkeypatch):
    from atent.bench import suite

    given = []

    def case(effort, _advance):
        given.append(effort.seconds)
        raise Omitted("for this test")

    section = Section("three", [Case("a", case), Case("b", case, 2.0), Case("c", case)])
    monkeypatch.setitem(suite._MAKERS, "growth", lambda plan: section)
    before = torch.get_num_threads()
    found = run(plan(sections=("growth",), minutes=1.0, threads=1), progress=False)
    assert torch.get_num_threads() == before
    # shares 1/4, 2/3 and all of a minute that none of them spends
    assert given == [pytest.approx(60 * share, rel=0.05) for share in (1 / 4, 2 / 3, 1)]
    assert found.sections["growth"].omitted == dict.fromkeys("abc", "for this test")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rofline", "did you mean 'roofline'"),
        ("growth --network resnet21", "did you mean 'resnet20'"),
        ("growth --network two_class", "takes points"),
        ("growth --budget 0", "minutes"),
        ("growth --threads 0", "threads"),
        ("growth --device quantum", "quantum"),
    ],
)
def test_the_command_refuses_in_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_writes_its_files_and_prints_json(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from atent.bench import plan as room

    monkeypatch.setattr(room, "QUICK", TOY)
    words = ["bench", "roofline", "--quick", "--budget", "0.001", "--json", "--quiet"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert BenchFile.from_json(json.loads(out)).settings["sections"] == ["roofline"]
    assert "GFLOP" in err
    assert {path.name for path in (tmp_path / "bench").iterdir()} >= {"bench.json", "bench.md", "bench.png"}
    assert main([*words, "--out", "bench"]) == 2
    assert main(words) == 0
    assert (tmp_path / "bench-2/bench.json").is_file()


def test_an_interrupted_measurement_is_resumed_by_the_same_command(tmp_path, monkeypatch):
    """What is measured is not measured again, in its folder, by the same settings alone."""
    from atent.bench import suite

    monkeypatch.chdir(tmp_path)
    measured, stops = [], [KeyboardInterrupt]

    def case(name):
        def measure(effort, _advance):
            if name == "b" and stops:
                raise stops.pop()
            measured.append((name, effort.seconds))
            rounds = quartiles([1.0, 2.0])
            return BenchCase(name, {}, [BenchRow("row", rounds, rounds)])

        return Case(name, measure)

    def omitted(_effort, _advance):
        raise Omitted("not here")

    section = Section("three", [case("a"), Case("none", omitted), case("b")])
    monkeypatch.setitem(suite._MAKERS, "growth", lambda plan: section)
    words = ["bench", "growth", "--quick", "--quiet", "--budget", "1"]
    assert main(words) == 130
    assert [p.name for p in tmp_path.glob("bench/bench*")] == [PART]
    assert main([*words, "--network", "digits_cnn"]) == 0
    assert (tmp_path / "bench-2/bench.json").is_file()
    del measured[:]
    assert main(words) == 0
    ((name, seconds),) = measured
    assert name == "b"
    assert seconds == pytest.approx(60, rel=0.05)
    found = BenchFile.from_json(json.loads((tmp_path / "bench/bench.json").read_text()))
    assert [c.name for c in found.sections["growth"].cases] == ["a", "b"]
    assert found.sections["growth"].omitted == {"none": "not here"}
    assert not (tmp_path / "bench" / PART).exists()


# ---- the machine and other packages


def test_instruction_sets_and_caches_are_read_from_the_system(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name : X\nflags : fpu sse4_2 smep avx2 fma avx512_bf16 amx_tile\n")
    assert instruction_sets(cpuinfo) == ["amx_tile", "avx2", "avx512_bf16", "fma", "sse4_2"]
    cpuinfo.write_text("Features : fp asimd sve2\n")
    assert instruction_sets(cpuinfo) == ["asimd", "sve2"]
    assert instruction_sets(tmp_path / "none") == []
    for number, (kind, level, size) in enumerate([("Data", 1, "32K"), ("Instruction", 1, "64K"), ("Unified", 2, "1M")]):
        place = tmp_path / "cache" / f"index{number}"
        place.mkdir(parents=True)
        for name, value in (("type", kind), ("level", level), ("size", size)):
            (place / name).write_text(f"{value}\n")
    assert caches(tmp_path / "cache") == {"L1": "32K", "L2": "1M"}


def test_a_package_that_does_not_import_says_why(monkeypatch):
    packages.found.cache_clear()
    monkeypatch.setitem(packages.PACKAGES, "foolbox", packages.Package("torch", "atent.no_such_module", ""))
    monkeypatch.setitem(packages.PACKAGES, "art", packages.Package("no-such-distribution", "art", "pip install it"))
    try:
        assert rivals.found("foolbox") == (
            None,
            f"version {torch.__version__} does not import: No module named 'atent.no_such_module'",
        )
        assert rivals.found("ART") == (None, "not installed: pip install it")
    finally:
        packages.found.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("norm", attacks.NORMS)
def test_installed_packages_find_adversarial_images(norm):
    """Every adapter whose package is installed answers, and finds some within the radius."""
    usable = rivals.installed()
    target = attacks.trained(norm, 16)
    tried = 0
    for contest in attacks.contests(norm, quick=True):
        for package, peer in contest.others.items():
            if package in usable and not contest.full_only:
                threat = contest.ours.threat
                x_adv = rivals.run(peer, target.model, target.x, target.y, threat)
                norms = rivals.norms_of(target.model, target.x, target.y, x_adv, threat, 1e-5)
                assert norms.isfinite().any(), (contest.name, package)
                tried += 1
    if not tried:
        pytest.skip("no package of the extra bench is installed")


def test_networks_are_built_with_weights_that_give_inputs_a_gradient():
    model, x, y = problem("small_cnn", 4)
    assert model.training
    assert not torch.equal(next(model.parameters()), next(build("small_cnn").parameters()))
    z = x.requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)
    assert slope.abs().sum() > 0


def test_the_page_shows_the_committed_result():
    text = (ROOT / "docs/performance.md").read_text()
    assert "<!-- bench: bench -->" in text
    assert benchmark_tables.refreshed(text, ROOT / "results") == text
