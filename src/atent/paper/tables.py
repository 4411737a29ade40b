"""The structure of the paper's tables: rows, their recipes, and the measurement of each cell.

A table is data: `tables(scale)` names for every cell a training and a measure, or the reason why this scale has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from atent.paper.layout import Block, Cell, Column, Measure, Row, Table, Training
from atent.paper.published import published
from atent.paper.scales import Scale

NAMES = ("table-s1", "table-s2", "table-s3", "table-s4", "figure-s1", "figure-1", "finetune", "mnist")


_ONE_NETWORK = "this scale trains one architecture: see the row TRADES smoothing"


def table_s1(s: Scale) -> Table:
    """CIFAR-10 under l2 attack: the published step, the released code's shorter one, and AutoAttack."""
    half, full = s.l2
    first = (
        _CLEAN,
        *(
            column
            for key, r in (("half", half), ("full", full))
            for column in _three(s, key, r)
        ),
    )  # fmt: skip
    second = (_CLEAN, *_three(s, "small", s.noisy))

    def row(key: str, recipe: str, label: str, radii: dict[str, float]) -> Row:
        training = Training(f"{s.small}-l2-{recipe}")
        cells = {"clean": Cell(training, Measure("clean", s.images), "clean")}
        for at, r in radii.items():
            same = Measure("attack", s.strong, attack=_protocols(s, r)[0][1])
            for protocol, text, n in _protocols(s, r):
                published = at if protocol == "published" else None
                also = same if protocol == "autoattack" else None
                cells[f"{at}-{protocol}"] = Cell(training, Measure("attack", n, attack=text), published, also=also)
        return Row(key, label, cells, ("table-s1", key))

    both = {"half": half, "full": full}
    return Table(
        "table-s1",
        "Table S1: accuracy under l2 attack",
        (
            Block(
                f"trained at l2 {full:g}",
                first,
                (
                    row("pgdat", "pgdat", "PGD-AT", both),
                    row("mma", "mma", "MMA", both),
                    row("atent", "atent", "l2 ATENT", both),
                ),
            ),
            Block(
                f"trained for smoothing, attacked at l2 {s.noisy:g}",
                second,
                (
                    row("trades-smoothing", "trades-smoothing", "TRADES smoothing", {"small": s.noisy}),
                    row("atent-smoothing", "atent-smoothing", "l2 ATENT with noise", {"small": s.noisy}),
                ),
            ),
        ),
    )


def table_s2(s: Scale) -> Table:
    """The smoothed classifier: its clean accuracy, which the paper calls certified, and the certificate itself."""
    network = "resnet110" if s.name == "paper" else None
    rows = (
        _bounded(s, "crown-ibp", "CROWN-IBP", "crown-ibp"),
        _bounded(s, "dual", "dual bound (Wong et al. 2018)", "dual"),
        _smoothed(s, "gaussian", "gaussian", "Gaussian noise", printed=False),
        _smoothed(s, "smoothadv", "smoothadv", "SmoothAdv", network=network),
        _smoothed(s, "trades-smoothing-110", "trades-smoothing", "TRADES smoothing, ResNet-110", network="resnet110"),
        _smoothed(s, "trades-smoothing", "trades-smoothing", "TRADES smoothing"),
        _smoothed(s, "atent-smoothing", "atent-smoothing", "ATENT, noise per step"),
        # The key and the run's name are those of files made under the recipe's former name; scale cifar has none.
        _smoothed(
            s,
            "atent-mended",
            "atent-smoothing-corrected",
            "ATENT, noise over the chain",
            printed=False,
            run="" if s.name == "cifar" else "atent-smoothing-mended",
        ),
    )
    block = Block("", _columns_s2(s), rows)
    return Table("table-s2", "Table S2: accuracy after randomised smoothing", (block,))


def _columns_s2(s: Scale) -> tuple[Column, ...]:
    noise = f"samples of noise {s.sigma:g}, alpha 0.001"
    predicted = f"{s.predicted or s.samples:,} {noise}"
    certified = f"CERTIFY of Cohen et al. 2019, {s.samples:,} {noise}"
    if s.predicted:
        certified = f"sequential test of at most {s.samples:,} {noise}"
    return (
        Column("base", "clean, base network (%)", "no noise"),
        Column(
            "clean",
            "clean, smoothed (%)",
            f"PREDICT of Cohen et al. 2019, {predicted}; abstentions are wrong",
            "sigma 0.12",
        ),
        Column(
            "certified",
            f"certified at l2 {s.smoothing:g} (%)",
            f"{certified}; rows of bounds: verified at linf {s.bounded}, a ball inside the l2 ball",
            "l2 0.435, sigma 0.12",
        ),
        Column("seconds", "seconds per image", "of the certificate"),
    )


def _smoothed(
    s: Scale, key: str, recipe: str, label: str, *, printed: bool = True, network: str | None = None, run: str = ""
) -> Row:
    """A row of table S2 by randomised smoothing; ``network`` replaces the recipe's, at the paper's scale alone."""
    training = Training(f"{s.small}-l2-{recipe}", label=run and f"{s.small}-l2-{run}")
    why = ""
    if network is not None:
        if s.name == "paper":
            training = Training(training.recipe, {"model": {"name": network}}, f"{training.recipe}-{network}")
        else:
            why = _ONE_NETWORK

    def cell(show: Any, beside: str | None) -> Cell:
        made = Measure(
            "smoothing", s.certified, sigma=s.sigma, samples=s.samples, predicted=s.predicted, radius=s.smoothing,
            show=show,
        )  # fmt: skip
        return Cell(None if why else training, None if why else made, beside if printed else None, why)

    cells = {
        "base": cell("clean", None), "clean": cell("smoothed", "clean"),
        "certified": cell("certified", "certified"), "seconds": cell("seconds", None),
    }  # fmt: skip
    return Row(key, label, cells, ("table-s2", key) if printed else None)


def _bounded(s: Scale, key: str, label: str, method: str) -> Row:
    """A row of table S2 by bounds of the network itself."""
    recipe = f"{s.small}-linf-{key}-2" if s.as_published else f"{s.small}-linf-{key}-s2"
    training = Training(recipe)
    n = min(s.certified, s.dual or s.certified) if method == "dual" else s.certified

    def cell(show: Any, beside: str | None) -> Cell:
        return Cell(training, Measure("bounds", n, method=method, radius=s.bounded, show=show), beside)

    none = Cell(None, None, None, "bounds verify the base network, without smoothing")
    cells = {
        "base": cell("clean", "clean"), "clean": none, "certified": cell("certified", "certified"),
        "seconds": cell("seconds", None),
    }  # fmt: skip
    return Row(key, label, cells, ("table-s2", key))


def table_s3(s: Scale) -> Table:
    """ATENT as an attack, PGD and AutoAttack, on the network trained by linf ATENT."""
    training = Training(f"{s.small}-linf-atent")
    steps = "step 0.003" if s.as_published else "steps of 2.5 eps / 20"
    step = ", step_size=0.003" if s.as_published else ""
    keys = ("2", "4", "8", "12")
    columns = (
        Column("clean", "clean (%)", "no attack"),
        *(Column(k, f"linf {r} (%)", "", f"linf {k}/255") for k, r in zip(keys, s.sweep)),
    )

    def pgd(r: float | str) -> str:
        return f"PGD(steps=20{step}, norm=linf, eps={r})"

    def row(key: str, label: str, text: Callable[[float | str], str], n: int) -> Row:
        cells = {"clean": Cell(training, Measure("clean", n))}
        for k, r in zip(keys, s.sweep):
            also = Measure("attack", n, attack=pgd(r)) if key == "autoattack" else None
            cells[k] = Cell(training, Measure("attack", n, attack=text(r)), k, also=also)
        return Row(key, label, cells, ("table-s3", key) if key != "autoattack" else None)

    rows = (
        row("pgd", f"PGD-20, {steps}", pgd, s.images),
        row("langevin", f"ATENT-20, {steps}", lambda r: f"Langevin(steps=20{step}, norm=linf, eps={r})", s.images),
        row("autoattack", f"{_called(s)}, {_version(s)}", lambda r: _autoattack(s, "linf", r), s.strong),
    )
    return Table("table-s3", "Table S3: ATENT as an attack", (Block("", columns, rows),))


def finetune(s: Scale) -> Table:
    """A standard-trained network, fine-tuned for a few epochs at a low rate, and ATENT from scratch."""
    benign = Training(f"{s.small}-pretrain" if s.name == "paper" else f"{s.small}-linf-standard")
    eps = "8/255" if s.as_published else s.linf
    columns = _against("linf", eps, 20, ", step_size=0.003" if s.as_published else "", s)

    def row(key: str, label: str, training: Training, published: str | None) -> Row:
        return Row(key, label, _cells(training, columns), ("finetune", published) if published else None)

    def tuned(kind: str) -> Training:
        return Training(f"{s.small}-finetune-{kind}", after=benign)

    rows = (
        row("benign", "standard training, before fine-tuning", benign, None),
        row("atent", "ATENT, fine-tuned", tuned("atent"), "atent"),
        row("pgdat", "PGD-AT, fine-tuned", tuned("pgdat"), "pgdat"),
        row("scratch", "ATENT, from scratch", Training(f"{s.small}-linf-atent"), "scratch"),
    )
    return Table("finetune", "Fine-tuning a standard-trained network", (Block("", tuple(c for c, _ in columns), rows),))


def mnist(s: Scale) -> Table:
    """MNIST in linf and l2, with plain SGD and Entropy-SGD."""
    plain = "mnist-sgd" if s.mnist == "mnist" else f"{s.mnist}-linf-standard"
    entropy = "mnist-entropy-sgd" if s.mnist == "mnist" else f"{s.mnist}-linf-entropy-sgd"
    blocks = []
    for norm, eps in (("linf", s.mnist_linf), ("l2", s.mnist_l2)):
        size = 0.01 if norm == "linf" else 0.125
        step = f", step_size={size}" if s.mnist == "mnist" else ""
        start = ", start=cube" if norm == "l2" else ""
        columns = _against(norm, eps, 40, step + start, s)
        recipes = {
            "sgd": plain, "entropy-sgd": entropy, "pgdat": f"{s.mnist}-{norm}-pgdat",
            "trades": f"{s.mnist}-{norm}-trades", "mma": f"{s.mnist}-{norm}-mma", "atent": f"{s.mnist}-{norm}-atent",
        }  # fmt: skip
        labels = {
            "sgd": "SGD", "entropy-sgd": "Entropy-SGD", "pgdat": "PGD-AT", "trades": "TRADES", "mma": "MMA",
            "atent": "ATENT",
        }  # fmt: skip
        rows = []
        for key, recipe in recipes.items():
            name = (f"mnist-{norm}", key) if key in published()[f"mnist-{norm}"].rows else None
            why = UNMADE.get(recipe, "")
            rows.append(
                Row(f"{norm}-{key}", labels[key], _cells(None if why else Training(recipe), columns, why), name)
            )
        blocks.append(Block(f"{norm} {eps:g}", tuple(c for c, _ in columns), tuple(rows)))
    return Table("mnist", "MNIST in linf and l2", tuple(blocks))


TABLES: dict[str, Callable[[Scale], Table]] = {
    "table-s1": table_s1, "table-s2": table_s2, "table-s3": table_s3, "finetune": finetune, "mnist": mnist,
}  # fmt: skip
"""The tables that are rows of trained networks; Table S4 and the figures are made in files of their own."""

UNMADE = {
    "mnist-linf-mma": "no recipe: no source states the settings of linf MMA on MNIST with the paper's network",
}
"""Recipes that a table would need but that do not exist, with the reason."""


def claimed() -> set[tuple[str, str, str]]:
    """Every published cell (table, row, column) that a table at the paper's scale reproduces."""
    from atent.paper.scales import PAPER

    return {
        (*row.published, cell.published)
        for make in TABLES.values()
        for row in make(PAPER).rows()
        if row.published is not None
        for cell in row.cells.values()
        if cell.published is not None
    }


# ---- columns that several tables share ---------------------------------------------------------------------

_CLEAN = Column("clean", "clean (%)", "no attack")


def _three(s: Scale, key: str, radius: float) -> tuple[Column, ...]:
    at, printed = f"l2 {radius:g}", {"half": "0.5", "full": "1", "small": "0.435"}[key]
    return (
        Column(
            f"{key}-published", f"PGD-10, {at}, published step (%)", "start cube, step 2.5 eps / 10", f"l2 {printed}"
        ),
        Column(
            f"{key}-weak", f"PGD-10, {at}, released step (%)", "start cube, step 0.5 eps / 10, as in the released code"
        ),
        Column(f"{key}-autoattack", f"{_called(s)}, {at} (%)", _version(s)),
    )


def _protocols(s: Scale, radius: float) -> list[tuple[str, str, int]]:
    """(column, attack, images) of Table S1's three protocols."""
    return [
        ("published", f"PGD(steps=10, start=cube, norm=l2, eps={radius})", s.images),
        ("weak", f"PGD(steps=10, start=cube, step_size={0.05 * radius:g}, norm=l2, eps={radius})", s.images),
        ("autoattack", _autoattack(s, "l2", radius), s.strong),
    ]


def _autoattack(s: Scale, norm: str, eps: float | str) -> str:
    return f"AutoAttack({s.cheaper + ', ' if s.cheaper else ''}norm={norm}, eps={eps})"


def _called(s: Scale) -> str:
    """AutoAttack's name: bare at the standard settings alone."""
    return f"AutoAttack ({s.cheaper.replace('=', ' ')})" if s.cheaper else "AutoAttack"


def _version(s: Scale) -> str:
    return f"with {s.cheaper.replace('=', ' ')}" if s.cheaper else "standard"


def _against(norm: str, eps: float | str, steps: int, more: str, s: Scale) -> list[tuple[Column, Cell]]:
    """Clean accuracy, PGD as published and AutoAttack, at one radius: columns, and cells without a network."""
    pgd = f"PGD(steps={steps}{more}, norm={norm}, eps={eps})"
    strong = Measure("attack", s.strong, attack=_autoattack(s, norm, eps))
    return [
        (_CLEAN, Cell(None, Measure("clean", s.images), "clean")),
        (
            Column("robust", f"PGD-{steps} (%)", f"{norm} {eps}, one start{more.replace('=', ' ')}"),
            Cell(None, Measure("attack", s.images, attack=pgd), "robust"),
        ),
        (
            Column("autoattack", f"{_called(s)} (%)", f"{norm} {eps}, {_version(s)}"),
            Cell(None, strong, also=Measure("attack", s.strong, attack=pgd)),
        ),
    ]


def _cells(training: Training | None, columns: list[tuple[Column, Cell]], why: str = "") -> dict[str, Cell]:
    if training is None:
        return {column.key: Cell(None, None, cell.published, why) for column, cell in columns}
    return {column.key: replace(cell, training=training) for column, cell in columns}
