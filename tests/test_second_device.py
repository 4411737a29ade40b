"""A second device, compiled here: where networks, inputs and labels meet, and that all rooms compute there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import on_second_device
import pytest
import second_device

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(second_device.lacking()), reason=second_device.lacking())]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    try:
        return second_device.build(tmp_path_factory.mktemp("second"))
    except subprocess.CalledProcessError as error:  # the interface that torch offers to devices has changed
        first = next((line for line in error.stderr.splitlines() if "error:" in line), "no error line")
        pytest.skip(f"the second device does not compile against this torch: {first}")


def found(library, cases):
    """The cases of `on_second_device` with what a child process found of each."""
    here = Path(on_second_device.__file__)
    path = os.pathsep.join([str(here.parent), str(here.parents[2] / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", str(here), str(library), cases]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_method_attack_and_bound_agrees_with_the_cpu(library):
    smoke = found(library, "smoke")
    assert {name: text for name, text in smoke.items() if text != "agrees" and not text.startswith("skipped")} == {}
    assert sum(text == "agrees" for text in smoke.values()) > 70


def test_network_inputs_and_labels_meet_on_the_device_of_the_network(library):
    assert {name: text for name, text in found(library, "meeting").items() if text} == {}


@pytest.mark.parametrize("case", ["constant", "step", "generator"])
def test_what_cannot_meet_is_refused_in_one_line(library, case):
    says = {
        "constant": ["ValueError: a layer combines its input, which is on second:0, with a tensor on another device"],
        "step": [
            "ValueError: inputs are on cpu and the model is on second:0: use x.to('second:0')",
            "ValueError: inputs are on second:0 and the model is on cpu: use x.to('cpu')",
            "ValueError: labels are on cpu and inputs on second:0: use y.to('second:0')",
        ],
        "generator": ["ValueError: rng is on cpu, the inputs on second:0: use torch.Generator(x.device)"],
    }[case]
    said = [text for name, text in found(library, "refused").items() if name.startswith(case)]
    assert len(said) == len(says), said
    for text, start in zip(said, says, strict=True):
        assert text.startswith(start), text
        assert "\n" not in text


def test_contract_suites_pass_there(library):
    assert {name: text for name, text in found(library, "suites").items() if text} == {}


def test_a_training_there(library):
    assert found(library, "trained")["devices"] == "second"
