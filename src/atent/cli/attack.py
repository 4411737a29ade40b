"""`atent attack`: adversarial images of a model, kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from atent.cli import show
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
    """Attack a model's test images and keep the results as an .npz file, and as a picture.

    Every image is attacked, also one that the model misclassifies without an attack; success is evaluated on the stored
    image, against its true label. Exit status: 0 done, 1 failed, 2 not understood.

    Parameters
    ----------
    attack
        The attack, written as a call, such as "PGD(steps=40, restarts=5)" or AutoAttack.
    out
        File to write: x_adv, x, y, ids, success, predicted and norm as numpy arrays, and provenance as JSON text.
    png
        Also draw the first fooled images into this file: original, adversarial, difference.
    shard
        i/k, with i from 1 to k: attack every k-th batch only, and write it beside the file as
        adversarial.shard-i-of-k.npz, on machines that need no common network.
    merge
        Join the shards of the same command, that is the same options, into the file that one process would write.
    json
        Print what was done, without the images, as JSON to standard output, and nothing else there.
    """
    from atent.distributed import alone, entered
    from atent.evaluate.craft import save
    from atent.experiments.crafted import crafted, crafted_merged, crafted_shard
    from atent.experiments.evaluation import measured
    from atent.experiments.target import load_target
    from atent.runs import locks
    from atent.signals import resumed_by

    file, picture = Path(out), Path(png) if png else None
    for path, option, kind in ((file, "--out", ".npz"), (picture, "--png", ".png")):
        if path is not None and path.suffix != kind:
            raise ValueError(f"{option} {path}: the name must end in {kind}")
    part = parsed(shard, merge)
    locks.steal(target.steal_lock)
    nothing = "nothing was written, the same command begins again"
    with show.json_alone(json) as emit, entered(lambda: show.own(out=file, png=picture)), resumed_by(nothing):
        subject = load_target(**target.keywords(), attacks=(attack,))
        show.threads(target.threads)
        subject, dtype = measured(subject, target.search_dtype())  # type: ignore[arg-type]
        if part is not None:
            one = crafted_shard(subject, file, part, search_dtype=dtype, progress=not target.quiet)
            print(f"written: {one}, shard {part.text} of {file.name}; after all of them: --merge")
            emit({"shard": part.text, "written": str(one)})
            return 0
        if merge:
            made, about = crafted_merged(subject, file, search_dtype=dtype)
        else:
            made, about = crafted(subject, search_dtype=dtype, progress=not target.quiet)
        alone(lambda: save(file, made, about))
        if picture is not None:
            alone(lambda: _draw(subject, made, about, picture))
        fooled, n = int(made["success"].sum()), len(made["y"])
        print(
            f"{about['attack']}: {fooled} of {n} images are misclassified after it, errors on the clean images included"
        )
        print(f"written: {', '.join(str(p) for p in (file, picture) if p)}")
        emit({**about, "n": n, "misclassified": fooled, "written": [str(p) for p in (file, picture) if p]})
    return 0


def _draw(subject: Evaluated, made: dict[str, Tensor], about: dict[str, Any], picture: Path) -> None:
    """The first fooled images: original, adversarial, difference."""
    from atent import plots
    from atent.attacks.spec import show as text_of

    shown = (made["success"] & (made["norm"] > 0)).nonzero().squeeze(1)[:8]
    rows = shown if len(shown) else slice(8)
    (used,) = subject.attacks.values()
    title = f"{subject.name}, {about['attack']}, {text_of(used.threat)}"
    images = (made[k][rows] for k in ("x", "x_adv", "y", "predicted"))
    plots.save(plots.adversarial(*images, title=title), picture)
