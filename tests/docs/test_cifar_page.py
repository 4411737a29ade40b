"""results/cifar/README.md: every figure that its text argues with is that of a file beside it."""

import csv
import re
from pathlib import Path

import pytest

from atent.certify.sequential import plan, threshold
from atent.experiments import migrate
from atent.experiments.results import CertificateFile, EvaluationFile, Share
from atent.paper.timing import counted, times
from atent.runs import read_json, read_rows, with_present_keys
from atent.stats import paired

PLACE = Path(__file__).parents[2] / "results" / "cifar"
PAGE = (PLACE / "README.md").read_text("utf-8")
TEXT = " ".join(PAGE.partition("<!-- generated")[0].split())
GUIDE = " ".join((Path(__file__).parents[2] / "docs" / "choosing.md").read_text("utf-8").split())


def rows(name):
    return read_rows(PLACE / name / "metrics.jsonl")


def robust(name):
    """The robust accuracy on validation images after each epoch, as the text gives it."""
    return [f"{100 * row['average_validation_robust']:.1f}" for row in rows(name)]


def share(name, key):
    """What was measured of a network."""
    found = with_present_keys(read_json(PLACE / name / "measures.json"))[key]["share"]
    return Share.of(found["k"], found["n"])


def figures(pattern):
    """The figures of the one passage that matches."""
    (found,) = re.findall(pattern, TEXT)
    return list(found) if isinstance(found, tuple) else [found]


def test_the_epochs_of_the_trainings():
    n = r"(\d+\.\d)"
    pgdat, atent, linf = (robust(f"cifar10-{name}") for name in ("l2-pgdat", "l2-atent", "linf-pgdat"))
    after = rf"is {n} % after epoch 11, {n} % after epochs 13 and 14 and {n} % after the last, the highest of all;"
    assert figures(after) == [pgdat[10], pgdat[12], pgdat[14]]
    assert pgdat[12] == pgdat[13]
    ends = rf"of ATENT in l2 {n}, {n} and {n} % after epochs 13, 14 and 15, the highest of all too; of PGD-AT in linf"
    assert figures(rf"{ends} {n}, {n} and {n} %\.") == atent[12:] + linf[12:]
    for every in (pgdat, atent, linf):
        assert len(every) == 15
        assert max(map(float, every)) == float(every[-1])
    tuned = rf"is {n}, {n}, {n} and {n} % after each epoch by ATENT, and {n}, {n}, {n} and {n} % by PGD-AT"
    assert figures(tuned) == robust("cifar10-finetune-atent") + robust("cifar10-finetune-pgdat")
    trained = [f"{100 * rows(f'cifar10-l2-{name}')[-1]['average_train_clean']:.1f}" for name in ("atent", "pgdat")]
    assert figures(rf"clean {n} % against {n} % of PGD-AT, averaged weights, 500 images, last epoch") == trained


def test_the_epochs_of_mma():
    n = r"(\d+\.\d+)"
    found, robusts = rows("cifar10-l2-mma"), robust("cifar10-l2-mma")
    passage = rf"is {n} % after the first epoch and {n}, {n} and {n} % after epochs 13, 14 and 15, the highest of all,"
    assert figures(passage) == [robusts[0], *robusts[12:]]
    assert max(map(float, robusts)) == float(robusts[-1])
    margins = [f"{row['margin_median']:.2f}" for row in found[12:]]
    assert figures(rf"median margin of the training images is {n}, {n} and {n}, where") == margins
    half, full = (f"AutoAttack(norm=l2, eps={eps}), stratified 300" for eps in (0.5, 1.0))
    shares = [share("cifar10-l2-mma", key) for key in ("natural, stratified 10000", full)]
    passage = r"clean accuracy of the l2 networks, (\S+ % \[\S+ \S+\]), .* lowest robust one, (\S+ % \[\S+ \S+\])"
    assert figures(passage) == [each.text for each in shares]
    mma, pgdat, atent = (share(f"cifar10-l2-{name}", half) for name in ("mma", "pgdat", "atent"))
    passage = rf"AutoAttack leaves (\S+ % \[\S+ \S+\]) of the 300 images, {n} % of PGD-AT's and {n} % of ATENT's"
    assert figures(passage) == [mma.text, *(f"{100 * each.value:.1f}" for each in (pgdat, atent))]


def test_the_epochs_of_figure_s1():
    found = read_json(PLACE / "figure-s1.json")
    every = [f"{100 * row['test_robust']:.1f}" for row in found["epochs"]]
    decay, best = found["decay"] - 1, max(range(len(every)), key=lambda i: float(every[i]))
    passage = r"rises from ([\d.]+) to ([\d.]+) % at the decay, is highest at epoch (\d+) \(([\d.]+) %\) and ([\d.]+) %"
    assert figures(passage) == [every[decay - 1], every[decay], str(best + 1), every[best], every[-1]]


def test_the_differences_are_those_of_the_tables():
    passage = r"difference, (\S+ \[\S+ \S+\]) points on 300 images, is (\S+ \[\S+ \S+\]) on 1,000\."
    section = PAGE.partition("### ATENT less PGD-AT in l2:")[2].partition("\n### ")[0]
    tables = [
        re.findall(rf"^\| AutoAttack.* \| (\S+ \[\S+ \S+\]) \| {n} \|", section, re.M)[0] for n in ("300", "1,000")
    ]
    assert figures(passage) == tables


@pytest.mark.parametrize(
    ("pattern", "n", "file"),
    [
        (r"bounds verify (\S+ % \[\S+ \S+\]) of all 9,980", 9980, "certificate-2.json"),
        (r"and (\S+ % \[\S+ \S+\]) of the 200 images", 200, "certificate.json"),
        (r"on the margin leaves (\S+ % \[\S+ \S+\]) of 1,000", 1000, "evaluation.json"),
        (r"of 1,000, AutoAttack (\S+ % \[\S+ \S+\]) of 300", 300, "measures.json"),
    ],
)
def test_the_figures_of_crown_ibp(pattern, n, file):
    path = PLACE / "cifar10-linf-crown-ibp-2" / file
    if file.startswith("certificate"):
        found = migrate.read(path, CertificateFile).certified[0].share
    elif file.startswith("measures"):
        found = share("cifar10-linf-crown-ibp-2", "AutoAttack(norm=linf, eps=2/255), stratified 300")
    else:
        found = migrate.read(path, EvaluationFile).worst
    assert (figures(pattern), found.n) == ([found.text], n)


def test_the_ratios_of_table_s4():
    found = read_json(PLACE / "table-s4.json")["timings"]
    ratios = [
        f"{times(counted(found[norm]), 'atent-10', other).value:.2f}"
        for norm in ("l2", "linf")
        for other in ("pgdat", "trades")
    ]
    passage = r"takes ([\d.]+) times as long as PGD-AT and ([\d.]+) times as long as TRADES in l2 \((\S+) and (\S+) in"
    assert figures(passage) == ratios


def test_the_certificate_of_gaussian_noise():
    found = migrate.read(PLACE / "cifar10-l2-gaussian" / "certificate.json", CertificateFile)
    assert [found.sampling[key] for key in ("sigma", "n", "alpha", "radius")] == [0.12, 100_000, 0.001, 0.25]
    passage = r"at l2 0\.25 on (\S+ % \[\S+ \S+\]) of (\d+) test images: .* the median image takes (\d+)\."
    sure = found.certified[0].share
    assert figures(passage) == [sure.text, str(sure.n), str(found.samples_median)]
    left = share("cifar10-l2-gaussian", "AutoAttack(norm=l2, eps=0.435), stratified 300")
    assert figures(r"AutoAttack at l2 0\.435 leaves (\S+ % \[\S+ \S+\]) of 300 images\.") == [left.text]
    least = []
    for radius in (0.435, 0.25):
        test = plan(threshold(radius, 0.12), 100_000, 0.001)
        least.append(f"{next(n for n, failures in zip(test.analyses, test.certify) if failures >= 0):,}")
    assert figures(r"the test needs (\S+) samples that agree or more \((\d+) at 0\.25\)") == least


def at_the_claims_radius(name):
    """The certificate at l2 0.435 of `cifar10-l2-NAME`, and of each image whether it has it and its right class."""
    key = "smoothing, sigma 0.12, 1000 and at most 100000 draws, l2 0.435, stratified 200"
    found = with_present_keys(read_json(PLACE / f"cifar10-l2-{name}" / "measures.json"))[key]
    made = migrate.read(PLACE / f"cifar10-l2-{name}" / "certificate-2.json", CertificateFile)
    assert (made.sampling["radius"], made.certified[0].share.k) == (0.435, found["certified"]["k"])
    return found, made


def rate(found, which):
    return Share.of(found[which]["k"], found[which]["n"]).text


def lead(one, other, which="certified"):
    """One less the other, image by image."""
    assert one["outcomes"]["ids"] == other["outcomes"]["ids"]
    values = [[found[which]["value"]] for found in (one, other)]
    return paired(*values, 200, tuple([found["outcomes"][which]] for found in (one, other)))


def beyond(found):
    """Images that the smoothed classifier gets right and that are not certified."""
    return sum(right > sure for right, sure in zip(found["outcomes"]["smoothed"], found["outcomes"]["certified"]))


def test_the_certificate_of_gaussian_noise_at_the_radius_of_the_claim():
    mine, made = at_the_claims_radius("gaussian")
    others = [at_the_claims_radius(f"{name}-smoothing")[0] for name in ("trades", "atent")]
    (entry,) = (
        e
        for e in read_json(PLACE / "cifar10-l2-gaussian" / "evaluated.json")
        if "l2 0.435, stratified 200" in e["what"]
    )
    value, points_ = r"(\S+ % \[\S+ \S+\])", r"(\S+ \[\S+ \S+\])"
    passage = (
        rf"it is certified on {value}, after (\S+) samples and (\d+) core seconds an image: TRADES with smoothing on"
        rf" {points_} points more of the images and ATENT with noise on {points_}\. Its .*? {value} of the 200 images,"
        r" of which (\d+) are classified correctly and not certified"
    )
    leads = [points(lead(other, mine)) for other in others]
    assert figures(passage) == [
        rate(mine, "certified"), f"{made.samples_mean:,.0f}", f"{entry['core_seconds'] / 200:.0f}",
        *(each.replace("+", "") for each in leads), rate(mine, "smoothed"), str(beyond(mine)),
    ]  # fmt: skip
    assert all(mine["smoothed"]["k"] > other["smoothed"]["k"] for other in others)
    assert f"Noise alone is certified there on {rate(mine, 'certified')}, although" in GUIDE
    assert f"TRADES less noise alone is {leads[0]} points, ATENT less noise alone {leads[1]}." in GUIDE


def certified(name):
    """Whether each image is certified for its label, by its index; and the share."""
    with open(PLACE / name / "certificate.csv", encoding="utf-8") as file:
        outcomes = {row["idx"]: row["correct"] for row in csv.DictReader(file, delimiter="\t")}
    (at,) = migrate.read(PLACE / name / "certificate.json", CertificateFile).certified
    assert (at.radius, at.share.k) == (0.25, sum(map(int, outcomes.values())))
    return outcomes, at.share


def test_the_figures_of_trades_with_smoothing():
    name, n = "cifar10-l2-trades-smoothing", r"(\d+\.\d)"
    clean, pgd = "natural, stratified 10000", "PGD(steps=10, start=cube, norm=l2, eps=0.435), stratified 10000"
    value = r"(\S+ % \[\S+ \S+\])"
    passage = rf"a clean accuracy of {value} and {value} under PGD-10 at 0\.435 \(n = 9,980; .*? trained for 1: {n}\)"
    other = share("cifar10-l2-pgdat", pgd)
    left = share(name, "AutoAttack(norm=l2, eps=0.435), stratified 300")
    assert figures(rf"trained for 1: [\d.]+\); AutoAttack leaves {value} of 300\.") == [left.text]
    assert figures(passage) == [share(name, clean).text, share(name, pgd).text, f"{100 * other.value:.1f}"]
    mine, rate = certified(name)
    noise, less = certified("cifar10-l2-gaussian")
    assert mine.keys() == noise.keys()
    lead = paired([rate.value], [less.value], rate.n, (["".join(mine.values())], ["".join(noise[i] for i in mine)]))
    points = [f"{100 * end:.1f}" for end in (lead.value, lead.low, lead.high)]
    passage = rf"at l2 0\.25 on {value} of the 200 images by the same test, {n} points \[(-?[\d.]+), {n}\] more"
    assert figures(passage) == [rate.text, *points]
    assert f"{rate.text} of 200 images and training with noise alone on {less.text}: image by image" in GUIDE
    assert f"{100 * lead.value:+.1f} [{100 * lead.low:+.1f}, {100 * lead.high:+.1f}] points" in GUIDE
    worst = [
        f"{100 * migrate.read(PLACE / each / 'evaluation.json', EvaluationFile).worst.value:.1f}"
        for each in ("cifar10-l2-gaussian", name)
    ]
    both = [f"{100 * share(each, clean).value:.1f}" for each in ("cifar10-l2-gaussian", name)]
    assert f"({worst[0]} against {worst[1]} % under PGD-40 at 0.435)" in GUIDE
    assert f"({both[0]} against {both[1]} %), for a tenth of the training" in GUIDE
    assert (
        figures(rf"on 500 validation images is {n}, {n} and {n} % after epochs 13, 14 and 15\. - ") == robust(name)[12:]
    )


def points(estimate):
    """A difference as the text gives it, in points."""
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def test_the_figures_of_atent_with_noise():
    names = [f"cifar10-l2-{name}-smoothing" for name in ("atent", "trades")]
    clean, pgd = "natural, stratified 10000", "PGD(steps=10, start=cube, norm=l2, eps=0.435), stratified 10000"
    value, points_ = r"(\S+ % \[\S+ \S+\])", r"(\S+ \[\S+ \S+\])"
    passage = rf"ATENT with noise, .*? accuracy of {value} and {value} under PGD-10 at 0\.435 \(n = 9,980;"
    assert figures(passage) == [share(names[0], key).text for key in (clean, pgd)]
    leads = []
    for key in (clean, pgd):
        sides = [with_present_keys(read_json(PLACE / name / "measures.json"))[key] for name in names]
        assert sides[0]["outcomes"]["ids"] == sides[1]["outcomes"]["ids"]
        values = [[side["share"]["value"]] for side in sides]
        leads.append(paired(*values, 9980, tuple([side["outcomes"]["share"]] for side in sides)))
    passage = rf"ATENT less TRADES, image by image, is {points_} points without an attack and {points_} under PGD-10"
    assert figures(passage) == [points(lead) for lead in leads]
    (mine, rate), (theirs, less) = map(certified, names)
    assert mine.keys() == theirs.keys()
    lead = paired([rate.value], [less.value], rate.n, (["".join(mine.values())], ["".join(theirs[i] for i in mine)]))
    passage = rf"certified at l2 0\.25 on {value} of the 200 images, a difference to TRADES of {points_} points"
    assert figures(passage) == [rate.text, points(lead)]
    n = r"(\d+\.\d)"
    every = robust(names[0])
    passage = (
        rf"images is {n} % after epoch 12, the highest, .*? evaluated, and {n}, {n} and {n} % after the last three:"
    )
    assert figures(passage) == [every[11], *every[12:]]
    assert max(every, key=float) == every[11]
    assert f"{rate.text} of the same images" in GUIDE
    assert f"{points(leads[1])} points under PGD-10" in GUIDE
    key = "AutoAttack(norm=l2, eps=0.435), stratified 300"
    sides = [with_present_keys(read_json(PLACE / name / "measures.json"))[key] for name in names]
    assert sides[0]["outcomes"]["ids"] == sides[1]["outcomes"]["ids"]
    values = [[side["share"]["value"]] for side in sides]
    lead = paired(*values, 300, tuple([side["outcomes"]["share"]] for side in sides))
    passage = rf"AutoAttack at 0\.435 leaves {value} of the 300 images, a difference to TRADES of {points_} points"
    assert figures(passage) == [share(names[0], key).text, points(lead)]
    assert f"{points(lead)} points under AutoAttack (n = 300)" in GUIDE


def test_the_certificates_at_the_radius_of_the_claim():
    names = ["trades-smoothing", "atent-smoothing"]
    (theirs, first), (mine, second) = map(at_the_claims_radius, names)
    value, points_ = r"(\S+ % \[\S+ \S+\])", r"(\S+ \[\S+ \S+\])"
    both = [rate(found, "certified") for found in (theirs, mine)]
    passage = (
        rf"TRADES with smoothing on {value} of the 200 images and ATENT with noise on {value}: .*? {points_} points\."
    )
    assert figures(passage) == [*both, points(lead(mine, theirs))]
    assert (
        f"TRADES with smoothing is certified on {both[0]} of the 200 images and ATENT with noise on {both[1]}." in GUIDE
    )
    passage = rf"which the paper's table calls certified, is {value} and {value} \(the paper: 78\.2 and 72\.2\)"
    assert figures(passage) == [rate(found, "smoothed") for found in (theirs, mine)]
    lost = [str(beyond(found)) for found in (theirs, mine)]
    assert figures(r"(\d+) and (\d+) images are classified correctly and not certified") == lost
    spent = []
    for name in names:
        work = f"atent certify cifar10-l2-{name} --sigma 0.12 --radius 0.435 --limit 200"
        entries = read_json(PLACE / f"cifar10-l2-{name}" / "evaluated.json")
        (entry,) = (e for e in entries if e["what"] == work)
        spent.append(f"{entry['core_seconds'] / 200:.0f}")
    taken = [f"{made.samples_mean:,.0f}" for made in (first, second)]
    passage = (
        r"The test took (\S+) and (\S+) samples of an image on average, of at most 100,000, and (\d+) and (\d+) core"
    )
    assert figures(passage) == taken + spent


@pytest.mark.parametrize("name", ["pgdat", "atent"])
def test_square_adds_nothing_to_the_evaluations_of_1000_images(name):
    """The text says so, since Square had another schedule than the published one."""
    assert "In the two evaluations of 1,000 images it succeeds on none" in TEXT
    found = migrate.read(PLACE / f"cifar10-l2-{name}" / "evaluation-autoattack.json", EvaluationFile)
    parts = found.attacks["AutoAttack"].parts
    assert parts["Square"].robust == parts["FAB-T"].robust
    assert parts["Square"].robust.n == 1000
