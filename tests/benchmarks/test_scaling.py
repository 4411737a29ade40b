"""What the scaling benchmark makes of its starts, and the page's table of it."""

import json
from pathlib import Path

import scaling
import tables

ROOT = Path(__file__).parents[2]


LINK = {"latency": 0.25, "bandwidth": 8.0}


def start(processes, turn, strong, weak, messages=0, size=0):
    sent = {"messages": messages, "bytes": size}
    found = {"a, net, strong": {"seconds": strong, **sent}, "a, net, weak": {"seconds": weak, **sent}}
    found["b, net, strong"] = {"seconds": 2.0 / processes}
    return {"round": turn, "processes": processes, "found": found | ({"messages": LINK} if processes > 1 else {})}


def content():
    starts = [start(1, turn, seconds, seconds) for turn, seconds in enumerate((10.0, 8.0, 9.0))]
    starts += [start(2, turn, seconds, 2 * seconds, 2, 16) for turn, seconds in enumerate((6.0, 5.0, 7.0))]
    starts.append(start(4, 0, 4.5, 20.0, 2, 16))
    found = {"starts": starts, "cores": 2, "bound": {"net": 2_500_000}, "rows": scaling.summary(starts)}
    return {**found, "model": scaling.predicted(found)}


def test_rows_are_medians_and_efficiency_is_of_a_perfect_division():
    rows = {(row["case"], row["processes"]): row for row in content()["rows"]}
    assert len(rows) == 9
    two = rows["a, net, strong", 2]
    assert (two["seconds"], two["least"], two["most"], two["repeats"]) == (6.0, 5.0, 7.0, 3)
    assert (two["speedup"], two["efficiency"]) == (9 / 6, 9 / 12)
    assert (two["messages"], two["bytes"]) == (2, 16)
    # Twice the samples in 12 s, beside 9 s for the samples of one process.
    assert (rows["a, net, weak", 2]["speedup"], rows["a, net, weak", 2]["efficiency"]) == (2 * 9 / 12, 9 / 12)
    assert (rows["b, net, strong", 4]["speedup"], rows["b, net, strong", 4]["efficiency"]) == (4.0, 1.0)
    assert all(row["efficiency"] == 1 for (_, processes), row in rows.items() if processes == 1)
    assert "bytes" not in rows["b, net, strong", 2]


def test_a_case_that_one_process_did_not_measure_has_no_row():
    assert scaling.summary([start(2, 0, 1.0, 1.0)]) == []


def test_the_model_is_passes_over_cores_and_bytes_and_messages():
    rows = {(row["case"], row["processes"]): row for row in content()["model"]}
    assert {processes for _, processes in rows} == {2, 4}
    # 9 s over two ranks, 2 (2 - 1) / 2 x 16 bytes at 8 a second, 2 messages of 0.25 s.
    assert rows["a, net, strong", 2]["predicted"] == 9 / 2 + 2 + 0.5
    assert rows["a, net, weak", 2]["predicted"] == 9 + 2 + 0.5
    # Four processes have two cores; 2 (4 - 1) / 4 x 16 bytes.
    assert rows["a, net, strong", 4]["predicted"] == 9 / 2 + 3 + 0.5
    assert rows["a, net, weak", 4]["predicted"] == 9 * 2 + 3 + 0.5
    assert rows["b, net, strong", 2]["communication"] == 0


def test_the_table_has_what_the_model_has(tmp_path):
    (tmp_path / "scaling.json").write_text(json.dumps(content()))
    head, _, *lines = tables.scaling(tmp_path).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]][:4] == ["what", "processes", "s", "model (s)"]
    assert len(lines) == len(content()["model"])
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "a, net, strong", "2", "6.000", "7.000", "1.50", "75", "2", "0.000", "2.500"
    ]  # fmt: skip
    # An evaluation sends next to nothing, and counts nothing.
    assert lines[-1].endswith("|  |  |  |")


def test_the_page_shows_the_results():
    page = ROOT / "docs" / "distributed.md"
    text = page.read_text()
    assert "<!-- scaling: speed -->" in text
    assert tables.refreshed(text, ROOT / "results") == text
    stored = json.loads((ROOT / "results" / "speed" / "scaling.json").read_text())
    for row in stored["rows"]:
        network = next((name for name in stored["bound"] if name in row["case"] and row.get("bytes")), None)
        if network and row["processes"] > 1:
            # Once a step; beside them are the metrics, one number a sample at most, and the moments of batch-norm.
            assert stored["bound"][network] <= row["bytes"] <= 1.05 * stored["bound"][network]
