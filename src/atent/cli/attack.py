"""`atent attack`: saves adversarial images of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from atent.cli import output
from atent.cli.parse import Flat, Place, Text, arg
from atent.cli.shards import parsed
from atent.cli.target import Target

if TYPE_CHECKING:
    from torch import Tensor

    from atent.experiments.target import Target as Evaluated

RENAMED = {"--batch": "--batch-size"}


def attack(
    target: Annotated[Target, Flat],
    *,
    attack: Annotated[str, arg("ATTACK")] = "PGD(steps=40)",
    out: Annotated[str, arg("PATH")] = "adversarial.npz",
    png: Place = None,
    shard: Text = None,
    merge: bool = False,
    json: bool = False,
) -> int:
    """Attack a model's test images and save the results as an .npz file, optionally with a figure.

    Every image is attacked, including images that the model already misclassifies; success is evaluated on the stored
    image, against its true label. Exit status: 0 success, 1 failure, 2 invalid usage.

    Parameters
    ----------
    attack
        Attack, written as a call, such as "PGD(steps=40, restarts=5)" or AutoAttack.
    out
        File to write, with the numpy arrays x_adv, x, y, ids, success, predicted and norm, and provenance as JSON text.
    png
        Also draw the first successful attacks to this file: original, adversarial, difference.
    shard
        i/k, with i from 1 to k: attack only the i-th of k shards (every k-th batch) and write
        adversarial.shard-i-of-k.npz beside the file; the machines need no connection.
    merge
        Merge the shards of the same command (same options) into the file that one process would write.
    json
        Print the result without the images to standard output as a single JSON document; an error leaves it empty.
    """
    from atent.distributed import alone, entered
    from atent.evaluate.craft import save
    from atent.experiments.crafted import crafted, crafted_merged, crafted_shard
    from atent.experiments.evaluation import measured
    from atent.experiments.target import load_target
    from atent.runs import locks
    from atent.signals import resumed_by

    file, picture = Path(out), Path(png) if png else None
    output.check_ending(file, "--out", ".npz")
    output.check_ending(picture, "--png", ".png")
    part = parsed(shard, merge, {"png": png})
    locks.steal(target.steal_lock)
    nothing = "repeating the command starts again"
    with output.json_alone(json) as emit, entered(lambda: output.own(out=file, png=picture)), resumed_by(nothing):
        subject = load_target(**target.keywords(), attacks=(attack,))
        output.threads(target.threads)
        if picture is not None:
            _check_images(subject.data.shape)
        subject, dtype = measured(subject, target.search_dtype())  # type: ignore[arg-type]
        if part is not None:
            one = crafted_shard(subject, file, part, search_dtype=dtype, progress=not target.quiet)
            print(f"written: {one}, shard {part.text} of {file.name}; merge all shards with --merge")
            emit({"shard": part.text, "written": str(one)})
            return 0
        if merge:
            made, about = crafted_merged(subject, file, search_dtype=dtype)
        else:
            made, about = crafted(subject, search_dtype=dtype, progress=not target.quiet)
        fooled, n = int(made["success"].sum()), len(made["y"])
        print(f"{about['attack']}: {fooled} of {n} images are misclassified, including clean errors")
        alone(lambda: save(file, made, about))
        print(f"written: {file}")
        if picture is not None:
            alone(lambda: _draw(subject, made, about, picture))
            print(f"written: {picture}")
        emit({**about, "n": n, "misclassified": fooled, "written": [str(p) for p in (file, picture) if p]})
    return 0


def _check_images(shape: Sequence[int]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"--png draws images of 1 or 3 channels, and the samples have the shape {tuple(shape)}: omit it"
        )


def _draw(subject: Evaluated, made: dict[str, Tensor], about: dict[str, Any], picture: Path) -> None:
    """Draw the first successful attacks: original, adversarial, difference."""
    from atent import plots
    from atent.attacks.spec import show as text_of

    shown = (made["success"] & (made["norm"] > 0)).nonzero().squeeze(1)[:8]
    rows = shown if len(shown) else slice(8)
    (used,) = subject.attacks.values()
    title = f"{subject.name}, {about['attack']}, {text_of(used.threat)}"
    x, x_adv = (plots.pixels(made[k][rows], subject.data.box) for k in ("x", "x_adv"))
    plots.save(plots.adversarial(x, x_adv, made["y"][rows], made["predicted"][rows], title=title), picture)
