"""Curves of recipes that were run on a CPU: keeps those of a run, and makes docs/curves.md of what is kept.

    python docs/curves.py keep RUN [NAME]     from the folder of a run that has ended
    python docs/curves.py > docs/curves.md    the page, and its pictures in docs/curves (`make docs`)

What is kept lies in configs/recipes/curves/NAME, and is a run folder, too, so that `llmkit report` draws it
beside another run: rows of metrics.jsonl, the settings, how it was started, on what and for how long.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.monitor.record import RunRecord, read_run
from llmkit.report.chart import Curve, Plot, draw

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "configs/recipes/curves"
PICTURES = ROOT / "docs/curves"
ROWS = 60
"""Rows of the training loss that are kept, about; of evaluations all are."""
COLUMNS = ("step", "tokens", "loss", "loss_mean", "learning_rate", "eval_loss", "eval_bits_per_byte")
FACTS = ("llmkit", "python", "torch", "device", "precision", "config")
"""Of manifest.json."""
INTRODUCTION = """\
# Curves

What recipes came to on a CPU, in real runs, to compare a run of your own with. `make docs` makes this page of
the rows in `configs/recipes/curves`. Recipes for GPUs, which were not run, and what is predicted of them:
[recipes](recipes.md#published-recipes).

**Is my run as it should be?** What is kept of a run is a run folder, so the two can be drawn over each other,
and their settings compared, where they were kept (not of the demo):

```sh
python configs/python_manual.py        # its text
llmkit train configs/recipes/characters.yaml train.precision=fp32
llmkit report runs/characters configs/recipes/curves/characters --output compared.html
```

More on that: [comparing runs](compare-runs.md).
The same seed gives the same batches, so with the precision of the kept run the curves lie on each other up to
rounding, as long as the text is the same: it comes from Python's own library, which differs a little between
releases of Python. The demo chooses its number of steps by the speed of the machine; to compare it, add
`train.max_minutes=null train.max_steps=3136`. The training loss is the mean over the steps since the row
before.
"""
MORE = """
## More

| | |
| --- | --- |
| fine-tuning of the demo, low-rank adapters of it | [fine-tuning](finetuning.md); figures in the files |
| rows that get longer, and a task of copying | [long context](long-context.md) |
| preferences | [configs/dpo.yaml](../configs/dpo.yaml): [fine-tuning](finetuning.md#preferences) |
| against nanoGPT, nanochat, Llama at equal tokens and equal time | [benchmarks](benchmarks.md) |
"""


def keep(run: RunRecord, folder: Path) -> None:
    """Writes what is kept of a run into a folder. Raises ValueError for a run that has not ended well."""
    ends = [event for event in run.events if event["event"] in ("start", "done")]
    if [event["event"] for event in ends] != ["start", "done"]:
        raise ValueError(f"{run.folder}: not a run from one start to its end")
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in _rows(run.folder / "metrics.jsonl"))
    (folder / "metrics.jsonl").write_text(text)
    events = [{name: event[name] for name in ("time", "event", "step") if name in event} for event in ends]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    manifest = {name: run.manifest[name] for name in FACTS}
    manifest["command"] = ["llmkit", *run.manifest["command"][1:]]
    start, end = (datetime.datetime.fromisoformat(str(event["time"])) for event in ends)
    manifest |= {"date": str(start.date()), "seconds": round((end - start).total_seconds())}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    settings = (run.folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(settings.replace(f"{Path.cwd()}/", ""))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of training, evenly thinned but for the first and the last, and all rows of evaluations."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [number for number, row in enumerate(rows) if "loss" in row]
    stride = max(1, len(trained) // ROWS)
    left_out = set(trained) - {*trained[::-1][::stride], trained[0]}
    for number, row in enumerate(rows):
        kept = {name: row[name] for name in COLUMNS if row.get(name) is not None}
        if number not in left_out and len(kept) > 1:
            yield {name: float(f"{value:.5g}") if isinstance(value, float) else value
                   for name, value in kept.items()}  # fmt: skip


def kept_runs() -> list[RunRecord]:
    """What is kept, the runs in the order in which they were made."""
    found = [read_run(path) for path in KEPT.iterdir() if path.is_dir()]
    return sorted(found, key=lambda run: (run.manifest["date"], run.name))


def markdown() -> str:
    """The page."""
    table = "\n| run | steps | tokens | bits per byte, held out | took |\n| --- | --: | --: | --: | --: |\n"
    for run in kept_runs():
        tokens, bits = run.columns["tokens"], run.columns["eval_bits_per_byte"].last
        steps, minutes = int(tokens.steps[-1]), run.manifest["seconds"] / 60
        table += f"| [{run.name}](#{run.name}) | {steps:,} | {tokens.last / 1e6:.2f}M | {bits:.4f} "
        table += f"| {minutes:.0f} min |\n"
    return "".join([INTRODUCTION, table, *map(_section, kept_runs()), MORE])


def _section(run: RunRecord) -> str:
    """How a run was started and on what, its curve, and its evaluations."""
    facts, evaluated = run.manifest, run.columns["eval_bits_per_byte"]
    steps = "".join(f" {int(step):,} |" for step in evaluated.steps)
    bits = "".join(f" {value:.4f} |" for value in evaluated.values)
    return (
        f"\n## {run.name}\n\n{_purpose(facts['config'])}\n\n```sh\n{' '.join(facts['command'])}\n```\n\n"
        f"![Training and held-out loss of {run.name} by step](curves/{run.name}.svg)\n\n"
        f"| step |{steps}\n| --- |{' --: |' * evaluated.steps.size}\n| bits per byte |{bits}\n\n"
        f"{facts['date']}, {facts['device']}, {facts['precision']}, torch {facts['torch']}, "
        f"Python {facts['python']}, llmkit {facts['llmkit']}.{facts.get('note', '')}\n"
    )


def _purpose(config: str) -> str:
    """The first paragraph of a configuration's head, and a link to the file."""
    head = re.match(r"(?:# .*\n)+", (ROOT / config).read_text())
    assert head, f"{config} begins without a comment"
    text = " ".join(line.removeprefix("# ") for line in head[0].splitlines())
    text = re.sub(r":? docs/curves\.md#\w+", "", text)  # which is where this stands
    return f"[{config}](../{config}): {text}"


STYLE = """\
text{font:12px system-ui,sans-serif;fill:#57606a}.k0{fill:#0969da}.k1{fill:#bc4c00}
path{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}.grid{stroke:#d0d7de;stroke-width:1}
.c0{stroke:#0969da}.c1{stroke:#bc4c00}.dots{stroke-width:6}
@media(prefers-color-scheme:dark){text{fill:#9198a1}.grid{stroke:#3d444d}
.c0{stroke:#4493f8}.c1{stroke:#f0883e}.k0{fill:#4493f8}.k1{fill:#f0883e}}"""
"""Light and dark, as the reader's system is."""
LEFT, TOP, WIDTH, HEIGHT = 52, 28, 640, 240
"""Of the plot in its picture, pixels."""


def picture(run: RunRecord) -> str:
    """The training loss and the held-out loss of a run by step, as an SVG file."""
    curves = []
    mean = run.columns.get("loss_mean", run.columns.get("loss"))
    for color, (name, column) in enumerate((("training", mean), ("held out", run.columns["eval_loss"]))):
        if column is not None:
            known = np.isfinite(column.values)
            x, y = column.steps[known].astype(float), column.values[known]
            curves += [Curve(name, x, y, color)] + [Curve(name, x, y, color, "dots")] * color
    plot = draw(curves, counts=True)
    assert plot is not None
    named = list(dict.fromkeys((curve.color, curve.name) for curve in curves))
    return _svg(plot, run.name, named)


def _svg(plot: Plot, title: str, named: list[tuple[int, str]]) -> str:
    """A plot with its ticks, and what its colours mean. named: colour and name of each curve."""
    right, bottom = LEFT + WIDTH, TOP + HEIGHT
    ys = [(round(bottom - HEIGHT * place / 100, 1), text) for place, text in plot.y.ticks()]
    xs = [(round(LEFT + WIDTH * place / 100, 1), text) for place, text in plot.x.ticks()]
    grid = "".join(f"M{LEFT} {y}H{right}" for y, _ in ys) + "".join(f"M{x} {TOP}V{bottom}" for x, _ in xs)
    texts = [f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>' for y, text in ys]
    texts += [f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{text}</text>' for x, text in xs]
    texts += [f'<text x="{right}" y="{bottom + 32}" text-anchor="end">step</text>']
    texts += [f'<text x="{LEFT}" y="16">{title}: nats a token</text>']
    texts += [
        f'<text class="k{color}" x="{right - 70 * place}" y="16" text-anchor="end">{name}</text>'
        for place, (color, name) in enumerate(named[::-1])
    ]
    paths = "".join(f'<path class="{kind}" d="{_placed(d)}"/>' for kind, _, d in plot.paths)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 14} {bottom + 38}" role="img" '
        f'aria-label="{title}, loss by step"><style>{STYLE}</style><path class="grid" d="{grid}"/>{paths}'
        f"{''.join(texts)}</svg>\n"
    )


def _placed(d: str) -> str:
    """A path of `draw`, in 1000ths of the plot, in the picture's pixels."""

    def scaled(match: re.Match[str]) -> str:
        x, y = int(match[2]) * WIDTH / 1000, int(match[3]) * HEIGHT / 1000
        moved = (x + LEFT, y + TOP) if match[1] == "M" else (x, y)
        return f"{match[1]}{moved[0]:.2f} {moved[1]:.2f}"

    return re.sub(r"([Ml])(-?\d+) ?(-?\d+)", scaled, d)


def main(arguments: list[str]) -> int:
    """Keeps a run, or makes the page and the pictures."""
    if arguments[:1] == ["keep"] and len(arguments) in (2, 3):
        run = read_run(Path(arguments[1]))
        keep(run, KEPT / (arguments[2] if len(arguments) == 3 else run.name))
        return 0
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PICTURES.mkdir(exist_ok=True)
    for run in kept_runs():
        (PICTURES / f"{run.name}.svg").write_text(picture(run))
    sys.stdout.write(markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
