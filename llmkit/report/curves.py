"""Which charts a page has: of one run its columns with what happened, of several a column for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmkit.monitor.columns import column_of
from llmkit.monitor.record import RunRecord
from llmkit.monitor.series import Series
from llmkit.report.axes import Axis, AxisName, axes_of, shared_axes, unit_of
from llmkit.report.chart import Curve, Mark, Plot, draw, smooth

LINES = 8
"""Curves of a chart at most."""
AFTER = 1.1
"""Times the last row's step: up to there what happened belongs to the end of the curves."""
OTHERS = 40
"""Charts of numbers that hooks record, at most."""


@dataclass(frozen=True)
class Shown:
    """A column in a chart: its name, what the legend calls it, and whether its smoothed form is shown too."""

    column: str
    label: str
    smoothed: bool = False
    kind: str = "line"


@dataclass(frozen=True)
class Wanted:
    """A chart: what it shows of a run. The first column that a run has decides whether there is a chart.

    factor: what values are multiplied by, as 100 for percent. marked: whether events are drawn into it.
    """

    title: str
    unit: str
    shown: tuple[Shown, ...]
    log: bool = False
    zero: bool = False
    factor: float = 1.0
    marked: bool = False
    note: str = ""


@dataclass(frozen=True)
class Pane:
    """A plot over one axis. label: of the x-axis."""

    name: str
    label: str
    plot: Plot


@dataclass(frozen=True)
class Chart:
    """A chart of a page, with a pane for each axis. legend: color and name of what is in it."""

    title: str
    unit: str
    panes: list[Pane]
    legend: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""


LOSS = Wanted(
    "Loss", "nats a target",
    (Shown("loss", "training", smoothed=True), Shown("eval_loss", "held out", kind="dots"),
     Shown("eval_ema_loss", "held out, moving average", kind="dots")), marked=True,
)  # fmt: skip
STANDARD = (
    Wanted("Bits per byte, held out", "bits", (Shown("eval_bits_per_byte", "held out"),)),
    Wanted("Learning rate", "", (Shown("learning_rate", "learning rate"),), zero=True),
    Wanted("Gradient norm", "before clipping", (Shown("grad_norm", "gradient norm", smoothed=True),),
        log=True, marked=True),
    Wanted("Speed", "tokens/s", (Shown("tokens_per_second", "whole job", smoothed=True),), zero=True,
        marked=True),
    Wanted("Utilization", "%", (Shown("mfu", "MFU", smoothed=True), Shown("mfu_causal", "causal MFU"),
        Shown("hfu", "HFU")), zero=True, factor=100.0),
    Wanted("Memory", "GiB", (Shown("peak_memory_gib", "peak"), Shown("reserved_memory_gib", "reserved")),
        zero=True),
    Wanted("Time of a step", "s", (Shown("step_seconds", "all of it"), Shown("data_seconds", "waiting"),
        Shown("step_seconds_predicted", "predicted")), zero=True),
    Wanted("Goodput", "% of the wall time", (Shown("goodput", "goodput"),), zero=True, factor=100.0),
    Wanted("Update to weight", "ratio of norms", (Shown("update_ratio", "all parameters"),), log=True),
    Wanted("Epochs", "", (Shown("epochs", "all sources"),), zero=True),
    *(
        Wanted(title, "nats a target", (Shown(column, "added to the loss", smoothed=True),))
        for column, title in (
            ("router_aux_loss", "Balance loss of routers"), ("router_z_loss", "Z loss of routers"),
            ("z_loss", "Z loss of the head"), ("label_smoothing", "Label smoothing"),
        )
    ),
    Wanted("Load of experts", "times the mean of a layer",
        (Shown("expert_load_max", "largest", smoothed=True), Shown("expert_load_min", "smallest")),
        zero=True),
    Wanted("Dropped choices of experts", "%", (Shown("expert_dropped", "all layers", smoothed=True),),
        zero=True, factor=100.0),
    Wanted("Entropy of routers", "nats", (Shown("router_entropy", "all layers", smoothed=True),), zero=True),
    Wanted("Power", "W", (Shown("power_watts", "devices", smoothed=True),), zero=True),
    Wanted("Energy a token", "J", (Shown("joules_per_token", "devices", smoothed=True),), zero=True),
)  # fmt: skip
FAMILIES = (
    ("loss/", "Loss by source", "nats a target"),
    ("eval_loss/", "Held-out loss by source", "nats a target"),
    ("eval_bits_per_byte/", "Bits per byte by source, held out", "bits"),
    ("loss_at/", "Loss by position in the document", "nats a target"),
    ("eval_loss_at/", "Held-out loss by position in the document", "nats a target"),
    ("rewards/", "Rewards of answers", "log-probability against the reference"),
    ("eval_rewards/", "Rewards of held-out answers", "log-probability against the reference"),
    ("epochs/", "Epochs by source", ""),
)


def charts(
    runs: Sequence[RunRecord], names: Sequence[str], marks: Sequence[tuple[int, str, str]]
) -> list[Chart]:
    """All charts that these runs have anything for, the loss first, over all axes; the others over steps.

    names: what the runs are called. marks: of one run, step, kind and text of what happened to it.
    """
    axes = [axes_of(run) for run in runs]
    main = _chart(LOSS, runs, names, axes, shared_axes(axes), marks)
    rest = (
        _chart(wanted, runs, names, axes, ["steps"], marks if wanted.marked else [])
        for wanted in (*STANDARD, *_families(runs), *_others(runs))
    )
    return [chart for chart in (main, *rest) if chart is not None]


def _chart(
    wanted: Wanted, runs: Sequence[RunRecord], called: Sequence[str], axes: Sequence[dict[AxisName, Axis]],
    names: Sequence[AxisName], marks: Sequence[tuple[int, str, str]],
) -> Chart | None:  # fmt: skip
    several = len(runs) > 1
    legend: dict[str, int] = {}
    panes = []
    counted, each_of = _counted(runs)
    for name in names:
        curves = list(_curves(wanted, runs, called, [each.get(name) for each in axes]))
        reach = max((_reach(run, each.get(name)) for run, each in zip(runs, axes, strict=True)), default=0.0)
        divided = unit_of(name, counted, reach)
        placed = _placed(runs[0], marks, axes[0].get(name)) if not several else []
        plot = draw(
            curves, placed, log=wanted.log, zero=wanted.zero, reach=reach, x_unit=divided,
            counts=name == "steps",
        )  # fmt: skip
        if plot is not None:
            panes.append(Pane(counted if name == "tokens" else name, divided[1], plot))
            legend |= {curve.name: curve.color for curve in curves if curve.name and curve.kind != "raw"}
    if not panes:
        return None
    shown = [(color, name) for name, color in legend.items()] if len(legend) > 1 else []
    unit = wanted.unit.replace("target", each_of)
    return Chart(wanted.title, unit, panes, [] if several else shown, wanted.note)


def _counted(runs: Sequence[RunRecord]) -> tuple[str, str]:
    """What the column `tokens` counts, and what a loss is the mean of: pairs, with the objective dpo."""
    kinds = {run.settings.get("train.objective") == "dpo" for run in runs}
    if len(kinds) > 1:
        return "tokens or pairs", "target or pair"
    return ("pairs", "pair") if True in kinds else ("tokens", "target")


def _reach(run: RunRecord, axis: Axis | None) -> float:
    """How far the rows of a run reach on an axis, so that all its charts end alike."""
    at = float(axis.of(np.array([_last_step(run)]))[0]) if axis is not None else 0.0
    return max(0.0, at) if np.isfinite(at) else 0.0


def _curves(
    wanted: Wanted, runs: Sequence[RunRecord], called: Sequence[str], axes: Sequence[Axis | None]
) -> Iterator[Curve]:
    """The curves of a chart. Of several runs, a colour each: the held-out values are dots then."""
    several = len(runs) > 1
    for number, (run, axis) in enumerate(zip(runs, axes, strict=True)):
        if axis is None:
            continue
        for place, each in enumerate(wanted.shown):
            column = run.columns.get(each.column)
            if column is None or not np.isfinite(column.values).any():
                continue
            x, y = axis.of(column.steps), column.values * wanted.factor
            color = number if several else place
            name = called[number] if several else each.label
            if each.smoothed:
                yield Curve(name, x, y, color, "raw")
                yield Curve(name, *_smoothed(run, each.column, column, axis, wanted.factor), color)
                continue
            yield Curve(name, x, y, color)
            if each.kind == "dots":
                yield Curve(name, x, y, color, "dots")


def _smoothed(
    run: RunRecord, name: str, column: Series, axis: Axis, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the smoothed column; of the loss, by the means over all steps between two rows."""
    means = run.columns.get("loss_mean") if name == "loss" else None
    used = means if means is not None and means.last is not None else column
    known = np.isfinite(used.values)
    return axis.of(used.steps[known]), smooth(used.values[known] * factor)


def _placed(run: RunRecord, marks: Sequence[tuple[int, str, str]], axis: Axis | None) -> list[Mark]:
    """Marks on an axis; one a little after the last row, as of a stop between two rows, lies at the end."""
    if axis is None or not marks:
        return []
    last = _last_step(run)
    steps = np.array([step for step, _, _ in marks])
    x = axis.of(np.where(steps <= AFTER * last, np.minimum(steps, last), steps))
    return [
        Mark(float(at), kind, text) for at, (_, kind, text) in zip(x, marks, strict=True) if np.isfinite(at)
    ]


def _last_step(run: RunRecord) -> int:
    return max((int(column.steps[-1]) for column in run.columns.values()), default=0)


def _families(runs: Sequence[RunRecord]) -> Iterator[Wanted]:
    """A chart for each family of columns; of several runs none, as their members are not the same."""
    if len(runs) > 1:
        return
    for prefix, title, unit in FAMILIES:
        names = [name for name in runs[0].columns if name.startswith(prefix)]
        accuracy = [name for name in names if name == f"{prefix}accuracy"]
        members = sorted((name for name in names if name not in accuracy), key=_by_numbers)
        shown = tuple(Shown(name, name.removeprefix(prefix)) for name in members[:LINES])
        left = f"{LINES} of {len(members)}" if len(members) > LINES else ""
        if shown:
            yield Wanted(title, unit, shown, note=left)
        if accuracy:
            yield Wanted(
                f"{title}: accuracy", "%", (Shown(accuracy[0], "accuracy"),), zero=True, factor=100.0
            )


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key by which 9 comes before 10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _others(runs: Sequence[RunRecord]) -> Iterator[Wanted]:
    """A chart for each number that hooks and models record under names of their own."""
    names = dict.fromkeys(name for run in runs for name in run.columns if column_of(name) is None)
    for number, name in enumerate(names):
        if number == OTHERS:
            return
        yield Wanted(name, "", (Shown(name, name),))
