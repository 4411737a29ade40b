"""The files of a certification: rows that resume and merge, their summary and their figure."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from atent import plots
from atent.certify import Certificate, Sampling, Smoothed, certify_run, merge
from atent.certify.certificate import certified_network
from atent.certify.rows import Row, read_rows, sums
from atent.folded import Folded
from atent.models import build
from atent.stats import interval

SIGMA = 0.5


# ---- files


SAMPLING = Sampling(SIGMA, n0=20, n=150, alpha=0.01, seed=3)


def same(a, b):
    """Compare two lists of rows without the seconds."""
    return [r._replace(time=0) for r in a] == [r._replace(time=0) for r in b]


@pytest.fixture
def task(conv_net, batch):
    x, y = batch(11, torch.float32)
    return conv_net(torch.float32), x, y, torch.arange(100, 111)


def test_rows_are_those_of_certify_and_predict(task, tmp_path):
    model, x, y, ids = task
    found = certify_run(model, x, y, SAMPLING, ids=ids, path=tmp_path / "certificate.csv")
    smoothed = Smoothed(model, SIGMA)
    classes, radii = smoothed.certify(x, 20, 150, 0.01, seed=3, ids=ids)
    plain = smoothed.predict(x, 150, 0.01, seed=3, ids=ids)
    for i, row in enumerate(found.rows):
        assert (row.idx, row.label, row.predict, row.radius) == (100 + i, int(y[i]), int(classes[i]), float(radii[i]))
        assert row.correct == int(row.predict == row.label)
        assert (row.smoothed, row.clean) == (int(plain[i]), int(model(x[i : i + 1]).argmax()))
    assert read_rows(tmp_path / "certificate.csv") == list(found.rows)
    head = (tmp_path / "certificate.csv").read_text().splitlines()[0]
    assert head.split("\t")[:6] == ["idx", "label", "predict", "radius", "correct", "time"]


def test_an_interrupted_run_goes_on_to_the_same_rows(task, tmp_path):
    model, x, y, ids = task
    want = certify_run(model, x, y, SAMPLING, ids=ids, batch=100).rows

    class Stop(Exception):
        pass

    path, drawn = tmp_path / "certificate.csv", 0

    def advance(amount, text):
        nonlocal drawn
        drawn += amount
        if drawn > 7 * 170:
            raise Stop

    with pytest.raises(Stop):
        certify_run(model, x, y, SAMPLING, ids=ids, path=path, batch=100, advance=advance)
    kept = read_rows(path)
    assert 0 < len(kept) < len(x)
    with open(path, "a") as file:
        file.write("107\t3\t3\t0.1")
    calls = []
    found = certify_run(model, x, y, SAMPLING, ids=ids, path=path, advance=lambda n, text: calls.append(n))
    assert same(found.rows, want)
    assert list(found.rows[: len(kept)]) == kept
    assert sum(calls) == len(x) * 170
    assert len(read_rows(path)) == len(x)
    # More images continue the file, other settings and another model do not.
    with pytest.raises(ValueError, match=r"made with draws\.seed 3, not 4"):
        certify_run(model, x, y, Sampling(SIGMA, 20, 150, 0.01, seed=4), ids=ids, path=path)
    with pytest.raises(ValueError, match=r"made with about\.weights [0-9a-f]{16}, not abc"):
        certify_run(model, x, y, SAMPLING, ids=ids, path=path, about={"weights": "abc"})


@pytest.fixture
def normed():
    """A network with batch norms, images, and the settings of a certificate with clear decisions."""
    torch.manual_seed(0)
    net = build("resnet8", shape=(1, 8, 8), classes=3)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(std=0.1)
                m.running_var.uniform_(0.5, 2)
    return net.eval(), torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])


def test_a_network_with_batch_norms_is_certified_folded_and_the_file_says_so(normed, tmp_path):
    net, x, y = normed
    path = tmp_path / "c.csv"
    network = certified_network(net, x, SAMPLING)
    assert network.layers == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    found = certify_run(net, x, y, SAMPLING, path=path)
    made = json.loads(path.with_suffix(".json").read_text())["made"]
    assert made["network"] == {"batch_norms_folded": network.layers}
    classes, radii = Smoothed(network.network, SIGMA).certify(x, 20, 150, 0.01, seed=3)
    assert [(r.predict, r.radius) for r in found.rows] == list(zip(classes.tolist(), radii.tolist()))
    # In float64 no two logits tie to rounding, so that the folded network has the votes of the network itself.
    net, x = net.double(), x.double()
    folded = certified_network(net, x, SAMPLING)
    assert folded.layers
    assert torch.equal(Smoothed(folded.network, SIGMA).votes(x, 200), Smoothed(net, SIGMA).votes(x, 200))


def test_a_file_begun_without_folding_ends_without_it(normed, tmp_path):
    net, x, y = normed
    path = tmp_path / "c.csv"
    first = certify_run(net, x[:2], y[:2], SAMPLING, path=path, network=Folded(net, 0, None))
    assert "network" not in json.loads(path.with_suffix(".json").read_text())["made"]
    found = certify_run(net, x, y, SAMPLING, path=path)
    assert list(found.rows[:2]) == list(first.rows)
    assert "network" not in json.loads(path.with_suffix(".json").read_text())["made"]
    with pytest.raises(ValueError, match=r"batch_norms_folded"):
        certify_run(net, x, y, SAMPLING, path=path, network=certified_network(net, x, SAMPLING))


def test_rows_of_older_noise_are_not_continued(task, tmp_path):
    """A file of an earlier version, whose sidecar does not record the noise, is not changed."""
    model, x, y, _ = task
    path = tmp_path / "c.csv"
    certify_run(model, x[:2], y[:2], SAMPLING, path=path)
    made = json.loads(path.with_suffix(".json").read_text())
    assert made["made"].pop("noise")
    path.with_suffix(".json").write_text(json.dumps(made))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"noise of another version .* choose another file") as error:
        certify_run(model, x, y, SAMPLING, path=path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    new = tmp_path / "d.csv"
    certify_run(model, x[:2], y[:2], SAMPLING, path=new)
    with pytest.raises(ValueError, match="made with other settings"):
        merge([path, new], x[0].numel())


def test_shards_merge_into_the_complete_certificate(task, tmp_path):
    model, x, y, ids = task
    want = certify_run(model, x, y, SAMPLING, ids=ids).rows
    paths = [tmp_path / f"{i}.csv" for i in range(3)]
    for i, path in enumerate(paths):
        part = certify_run(model, x, y, SAMPLING, ids=ids, path=path, shard=(i, 3))
        assert [row.idx for row in part.rows] == ids[i::3].tolist()
    assert same(merge(paths, 64).rows, want)
    assert same(merge(paths, 64, ids.tolist()).rows, want)
    with pytest.raises(ValueError, match="4 of 11 samples are missing in all shards"):
        merge(paths[1:], 64, ids.tolist())
    other = tmp_path / "other.csv"
    certify_run(model, x, y, Sampling(SIGMA, 20, 160, 0.01), ids=ids, path=other, shard=(0, 3))
    with pytest.raises(ValueError, match="made with other settings"):
        merge([*paths, other], 64)
    text = paths[0].read_text().replace("100\t", "101\t", 1)
    paths[0].write_text(text)
    with pytest.raises(ValueError, match="disagrees with an earlier shard on sample 101"):
        merge(paths, 64)
    paths[0].write_text(text.replace("101\t", "x\t", 1))
    with pytest.raises(ValueError, match="line 2: not a row"):
        merge(paths, 64)
    for shard in ((3, 3), (-1, 3), (0, 12)):
        with pytest.raises(ValueError, match="shard"):
            certify_run(model, x, y, SAMPLING, ids=ids, shard=shard)


class Centred(nn.Module):
    """A network whose logits depend on the rest of the batch."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc((x - x.mean(0)).flatten(1))


def test_a_merged_certificate_reports_that_answers_depend_on_the_batch(task, tmp_path):
    _, x, y, _ = task
    paths = [tmp_path / f"{i}.csv" for i in range(2)]
    parts = [certify_run(Centred(), x, y, SAMPLING, path=path, about={}, shard=(i, 2)) for i, path in enumerate(paths)]
    assert "no certificate is valid" in parts[0].hint
    assert merge(paths, 64).hint == parts[0].hint
    assert merge(paths[::-1], 64).hint == parts[1].hint
    # The network was corrected in the meantime, as far as the file says.
    assert (
        certify_run(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x, y, SAMPLING, path=paths[0], about={}).hint
        is None
    )
    assert merge(paths[:1], 64).hint is None


def test_the_summary_separates_three_accuracies():
    sampling = Sampling(0.5, n0=10, n=1000, alpha=0.001)
    rows = [
        # label, predict, radius, clean, smoothed
        (1, 1, 0.6, 1, 1),
        (1, 1, 0.2, 0, 1),
        (1, -1, 0.0, 1, 1),
        (1, 0, 0.9, 1, 0),
        (1, -1, 0.0, 0, -1),
    ]
    made = tuple(Row(i, a, b, r, int(a == b), 2.0, c, d) for i, (a, b, r, c, d) in enumerate(rows))
    found = Certificate(made, sampling, dim=64).to_json([0, 0.2, 0.5])
    assert (found["clean"]["k"], found["smoothed"]["k"], found["abstained"]["k"]) == (3, 3, 2)
    assert [c["share"]["k"] for c in found["certified"]] == [2, 2, 1]
    low, high = interval(1, 5)
    assert found["certified"][2] == {
        "radius": 0.5, "linf_radius": 0.0625, "share": {"value": 0.2, "low": low, "high": high, "k": 1, "n": 5},
    }  # fmt: skip
    assert found["radius_mean"] == pytest.approx(0.16)
    assert (found["radius_median"], found["seconds_per_image"], found["n"]) == (0.0, 2.0, 5)
    assert found["sampling"] == {"sigma": 0.5, "n0": 10, "n": 1000, "alpha": 0.001, "seed": 0}
    with pytest.raises(ValueError, match=r"radius 1\.3 cannot be certified"):
        Certificate(made, sampling, dim=64).to_json([1.3])
    assert [c["radius"] for c in Certificate(made, sampling, dim=64).to_json()["certified"]] == [0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("radii", "median"),
    [([0.3], 0.3), ([0.4, 0.2], 0.2), ([0.1, 0.4, 0.2, 0.3], 0.2), ([0.3, 0.1, 0.2], 0.2), ([0.3, 0.3, 0.1], 0.3)],
)
def test_at_the_median_radius_more_than_half_of_the_samples_are_certified(radii, median):
    """Of an even number it is the lower one; of two wrong samples of four it is 0."""
    made = tuple(Row(i, 1, 1, r, 1, 1.0, 1, 1) for i, r in enumerate(radii))
    found = Certificate(made, Sampling(0.5, n0=10, n=1000), dim=64)
    assert found.to_json()["radius_median"] == median
    assert found.certified(median)["k"] > len(radii) / 2
    larger = [r for r in radii if r > median]
    assert all(found.certified(r)["k"] <= len(radii) / 2 for r in larger)
    wrong = tuple(row._replace(predict=0, correct=0) for row in made)
    half = Certificate(made + wrong, Sampling(0.5, n0=10, n=1000), dim=64)
    assert half.to_json()["radius_median"] == 0


# ---- the figure


def test_the_figure_falls_just_beyond_each_radius():
    figure = plots.certified({"a": [0.1, 0.3, -1.0, 0.3], "b": [-1.0, -1.0]}, marks={0.2: "l2 0.2"})
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("certified l2 radius (pixel units)", "certified accuracy (%)")
    line = axes.get_lines()[0]
    places, values = line.get_xdata(), line.get_ydata()
    assert line.get_drawstyle() == "steps-pre"

    def at(r):
        # steps-pre: a value applies after the previous position up to and including its own
        return values[int(np.searchsorted(places, r))]

    for r, want in ((0.0, 75), (0.05, 75), (0.1, 75), (0.1001, 50), (0.3, 50)):
        assert at(r) == want
    assert values[-1] == 0
    assert set(axes.get_lines()[1].get_ydata()) == {0}
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["a (n = 4)", "b (n = 2)"]
    for bad in ({}, {"a": []}, {"a": [math.nan]}):
        with pytest.raises(ValueError, match=r"radii|certificates"):
            plots.certified(bad)


def test_rows_of_other_weights_are_not_taken(tmp_path):
    """Before: without ``about`` a second network got the certificates of the first."""
    net, x, y = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), torch.rand(3, 1, 4, 4), torch.arange(3)
    path = tmp_path / "rows.csv"
    first = certify_run(net, x, y, SAMPLING, path=path)
    same = certify_run(net, x, y, SAMPLING, path=path)
    assert [row.radius for row in same.rows] == [row.radius for row in first.rows]
    net[1].bias.data[0] += 5
    with pytest.raises(ValueError, match=r"was made with about\.weights"):
        certify_run(net, x, y, SAMPLING, path=path)
    assert len(certify_run(net, x, y, SAMPLING, path=tmp_path / "free.csv", about={}).rows) == 3


def test_rows_of_other_images_are_not_taken(task, tmp_path, capsys):
    """Before: another image of the same number got the certificate of the first."""
    model, x, y, ids = task
    path = tmp_path / "rows.csv"
    first = certify_run(model, x[:4], y[:4], SAMPLING, ids=ids[:4], path=path)
    assert read_rows(path) == list(first.rows)
    assert len({row.image for row in first.rows}) == 4
    before = path.read_bytes()
    other = x.clone()
    other[2, 0, 0, 0] = 1 - other[2, 0, 0, 0]
    # Other labels too are no damage.
    for labels in (y, (y + 1) % 10):
        with pytest.raises(ValueError, match=r"rows\.csv has the certificate of another image as number 102") as error:
            certify_run(model, other, labels, SAMPLING, ids=ids, path=path)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == before
    # More images of other numbers continue the file.
    assert same(certify_run(model, other[3:], y[3:], SAMPLING, ids=ids[3:], path=path).rows[:1], first.rows[3:])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("about", [None, {}])
def test_a_file_without_hashes_of_its_images_is_refused(about, task, tmp_path):
    """As earlier versions wrote it, with or without a record of the network."""
    model, x, y, _ = task
    path = tmp_path / "rows.csv"
    certify_run(model, x[:3], y[:3], SAMPLING, path=path, about=about)
    content = json.loads(path.with_suffix(".json").read_text())
    content["made"]["about"].pop("model", None)
    path.with_suffix(".json").write_text(json.dumps(content))
    path.write_text("".join(line.rpartition("\t")[0] + "\n" for line in path.read_text().splitlines()))
    sums(path).unlink(missing_ok=True)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="was made by an earlier version, which did not record its images") as error:
        certify_run(model, x, y, SAMPLING, path=path, about=about)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert len(merge([path], 64).rows) == 3


def test_rows_of_a_network_with_other_settings_or_by_another_certifier_are_not_taken(tmp_path):
    """Before: the rows of the first network were those of the second, whose weights are the same."""

    class Other(Smoothed):
        pass

    torch.manual_seed(0)
    x, y, path = torch.rand(3, 1, 4, 4), torch.arange(3), tmp_path / "rows.csv"
    net = nn.Sequential(nn.Flatten(), nn.LeakyReLU(0.1), nn.Linear(16, 3))
    first = certify_run(net, x, y, SAMPLING, path=path)
    assert certify_run(net, x, y, SAMPLING, path=path).rows == first.rows
    with pytest.raises(ValueError, match=r"made with about\.certifier None, not Other"):
        certify_run(net, x, y, SAMPLING, path=path, certifier=Other)
    net[1].negative_slope = 0.3
    with pytest.raises(ValueError, match=r"made with about\.model"):
        certify_run(net, x, y, SAMPLING, path=path)


def test_a_file_of_an_earlier_version_without_the_network_is_resumed_by_an_empty_about(tmp_path):
    net, x, y = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), torch.rand(3, 1, 4, 4), torch.arange(3)
    path = tmp_path / "rows.csv"
    first = certify_run(net, x, y, SAMPLING, path=path, about={})
    with pytest.raises(ValueError, match=r"does not record its network.*about=\{\}"):
        certify_run(net, x, y, SAMPLING, path=path)
    assert certify_run(net, x, y, SAMPLING, path=path, about={}).rows == first.rows
