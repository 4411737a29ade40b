"""A network as one executable file: a program of torch.export, or an ONNX network."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.experiments.target import Target
from atent.export.checks import Run
from atent.extras import extra
from atent.runs import atomic, plain, provenance

OPSET = 18
INPUT, OUTPUT = "input", "logits"
_KEY = "atent"
"""Key of the metadata in a file."""


def about(target: Target) -> dict[str, Any]:
    """The metadata of a file: provenance, inputs and classes of the network."""
    data = target.data
    found: dict[str, Any] = plain({
        **target.about, "name": target.name, "classes": data.classes, "class_names": data.about.get("class_names"),
        "shape": list(data.shape), "box": data.box, "normalisation": "inside", "data": data.name,
        "threat": None if target.threat is None else target.threat.plain(), "provenance": provenance(),
    })  # fmt: skip
    return found


def write_program(target: Target, path: Path) -> Run:
    """Write the network as a program of torch.export with a dynamic batch; returns the program loaded from the file.

    ValueError, in one line, if torch cannot export it.
    """
    model, x = _on_cpu(target)
    with _quiet(), _one_line(f"{target.name} cannot be exported by torch.export"):
        program = torch.export.export(model, (x,), dynamic_shapes=_batch(model))
    with atomic(path) as temporary:
        torch.export.save(program, temporary, extra_files={_KEY: json.dumps(about(target))})
    with _quiet():
        loaded = torch.export.load(path).module()

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = loaded(inputs)
        return logits

    return run


def write_onnx(target: Target, path: Path) -> Run:
    """Write the network as ONNX, opset `OPSET`, with a dynamic batch and `about` in its metadata; returns the network
    of the file in onnxruntime.

    ImportError, in one line, without the extra; ValueError if ONNX does not support an operator.
    """
    onnx = extra("onnx", "onnx", "the export to ONNX")
    for module in ("onnxscript", "onnxruntime"):
        extra(module, "onnx", "the export to ONNX")
    model, x = _on_cpu(target)
    with _quiet(), _one_line(f"{target.name} cannot be exported to ONNX, opset {OPSET}"):
        program = torch.onnx.export(
            model, (x,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=_batch(model),
            opset_version=OPSET, external_data=False, verbose=False,
        )  # fmt: skip
        assert program is not None
        proto = program.model_proto
    onnx.helper.set_model_props(proto, {_KEY: json.dumps(about(target))})
    onnx.checker.check_model(proto)
    with atomic(path) as temporary:
        onnx.save(proto, temporary)
    return runtime(path)


def runtime(path: Path) -> Run:
    """An ONNX file in onnxruntime, on the CPU; ValueError for a file that it does not run."""
    onnxruntime = extra("onnxruntime", "onnx", "running an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"onnxruntime cannot run {path}: {_first(str(error))}") from error

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])

    return run


def _on_cpu(target: Target) -> tuple[nn.Module, Tensor]:
    """A copy of the network on the CPU, and two inputs: torch would specialise to a batch of one."""
    model = copy.deepcopy(target.model).cpu().eval()
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    x, _ = target.data.test.batch(torch.arange(2))
    return model, x.cpu().to(first.dtype)


def _batch(model: nn.Module) -> Any:
    return ({0: torch.export.Dim("batch")},)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output and the log of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _one_line(head: str) -> Iterator[None]:
    """An exporter's error as a ValueError of one line that names the operator or the line of code."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{head}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    texts = []
    at: BaseException | None = error
    while at is not None:
        texts.append(str(at))
        at = at.__cause__
    operator = next((found for text in texts if (found := re.search(r"op='(aten\.\w+)'", text))), None)
    if operator:
        return f"{operator[1]} is not supported there: replace that operation in the network"
    line = next(
        (found for text in texts if (found := re.search(r'File "([^"]+)", line (\d+), in forward', text))), None
    )
    where = f" ({line[1]}, line {line[2]})" if line else ""
    hint = ": the forward pass may not branch on values of its input" if "data-dependent" in texts[-1] else ""
    return f"{_first(texts[-1])}{where}{hint}"


def _first(text: str) -> str:
    """The first line, at most 200 characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return line if len(line) <= 200 else f"{line[:200]}..."
