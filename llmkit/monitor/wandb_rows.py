"""Rows of metrics.jsonl and items of media.jsonl as W&B shows them."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from llmkit.monitor.columns import column_of
from llmkit.monitor.jsonlines import Row

STEP = "train/step"
"""The axis of all charts: W&B's own step counts rows."""
BEST = {
    "loss_mean": min,
    "eval_loss": min,
    "eval_bits_per_byte": min,
    "tokens_per_second": max,
    "mfu": max,
}
"""Columns whose best value is in the summary, and which of two values is better."""
IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
"""Endings of files that are images: the type that a browser calls it."""
MEDIA_SECTIONS = {"histogram": "layers", "table": "samples", "image": "images"}


def chart_name(column: str) -> str:
    """The name of a column on the page: its part before the first slash is the section."""
    if column == "step":
        return STEP
    known = column_of(column)
    group: str | None = known.group if known else ("eval" if column.startswith("eval_") else None)
    if group == "eval":
        column = column.removeprefix("eval_")
    if group is None:
        group = column.partition("/")[0] if "/" in column else "train"
    return column if column.startswith(f"{group}/") else f"{group}/{column}"


def chart_values(row: Row) -> dict[str, float]:
    """The numbers of a row under the names they have on the page, true as 1; all else is left out."""
    return {
        chart_name(name): int(value) if isinstance(value, bool) else value
        for name, value in row.items()
        if isinstance(value, int | float)
    }


class Best:
    """The best values of a run so far, for the summary: `see` every row of it, in order."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, int]] = {}

    def see(self, row: Row) -> dict[str, float]:
        """What changes in the summary by this row."""
        changed: dict[str, float] = {}
        for name, better in BEST.items():
            value, step = row.get(name), row.get("step", 0)
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            known = self._found.get(name)
            if known is None or (value != known[0] and better(value, known[0]) == value):
                self._found[name] = value, step
                changed |= {f"best/{name}": value, f"best/{name}_step": step}
        return changed

    def summary(self) -> dict[str, float]:
        """All of it."""
        return {
            key: value
            for name, (best, step) in self._found.items()
            for key, value in ((f"best/{name}", best), (f"best/{name}_step", step))
        }


def media_name(item: Row) -> str:
    """The name of an item of media.jsonl on the page."""
    section = MEDIA_SECTIONS[item["kind"]]
    name = str(item["name"])
    return name if name.startswith(f"{section}/") else f"{section}/{name}"


def media(item: Row, run_dir: Path) -> dict[str, Any]:
    """What `run.log` takes for an item of media.jsonl. Raises ValueError where it is none."""
    import wandb

    try:
        kind, step = item["kind"], int(item["step"])
        value: Any
        if kind == "histogram":
            value = wandb.Histogram(np_histogram=(item["counts"], item["edges"]))
        elif kind == "table":
            value = wandb.Table(columns=list(item["columns"]), data=[list(row) for row in item["rows"]])
        elif kind == "image":
            value = wandb.Html(_page_of(_image(run_dir, item["path"])), inject=False)
        else:
            raise ValueError(f"there is no kind {kind!r}")
        return {STEP: step, media_name(item): value}
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _image(run_dir: Path, path: str) -> Path:
    """The file of an image, which must lie in the run folder."""
    root = run_dir.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or file.suffix.lower() not in IMAGES or not file.is_file():
        raise ValueError(f"{path!r} is no image in the run folder")
    return file


def _page_of(image: Path) -> str:
    """A page with the image in it: wandb's own images need Pillow."""
    content = b64encode(image.read_bytes()).decode()
    return f'<img src="data:image/{IMAGES[image.suffix.lower()]};base64,{content}">'


def events_table(events: list[Row]) -> dict[str, Any]:
    """What `run.log` takes for all events of a run so far. events: redacted."""
    import wandb

    last = max((event["step"] for event in events if isinstance(event.get("step"), int)), default=0)
    rows = [
        [
            str(event.get("time", "")),
            str(event.get("event", "")),
            event.get("step"),
            "; ".join(
                f"{name}: {value}"
                for name, value in event.items()
                if name not in ("time", "event", "step") and not isinstance(value, dict | list)
            ),
        ]
        for event in events
    ]
    return {STEP: last, "faults/events": wandb.Table(columns=["time", "event", "step", "details"], data=rows)}
