"""Makes the pictures of docs/pictures: `python docs/pictures.py` (`make docs`).

- memory.svg: of `llmkit plan`, the memory of a GPU by part at each ZeRO stage
- mesh.svg: the ranks of two nodes along the dimensions of the mesh
- life.svg: a run that was stopped, killed and went on, of the rows and events that it left
  (docs/pictures/life, kept by `python docs/pictures.py keep RUN METRICS_BEFORE`)
- console.svg: the live view of that run (docs/pictures/console.txt)

Each is light or dark as the reader's system is, and loads nothing.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from llmkit.cli import main

FOLDER = Path(__file__).resolve().parent / "pictures"
ROOT = FOLDER.parents[1]
MODEL, DEVICES = "configs/models/llama-3.1-8b.yaml", 8
COLUMNS, FACTS = ("step", "loss_mean", "elapsed_seconds"), ("at", "event", "step")
GIB = 2**30
STYLE = """\
text{font:12px system-ui,sans-serif;fill:#57606a}.strong{fill:#1f2328}
.mono{font:13px ui-monospace,monospace;fill:#1f2328}
.box{fill:#f6f8fa;stroke:#d0d7de}.line{fill:none;stroke:#d0d7de}.on{fill:#fff}
.c0{fill:#0969da}.c1{fill:#bc4c00}.c2{fill:#1a7f37}.c3{fill:#8250df}.c4{fill:#9a6700}.c5{fill:#6e7781}
.curve{fill:none;stroke:#0969da;stroke-width:1.8}
.gone{stroke-dasharray:4 3;stroke:#bc4c00}.mark{stroke:#1f2328}
@media(prefers-color-scheme:dark){text{fill:#9198a1}.strong,.mono{fill:#f0f6fc}.box{fill:#151b23;stroke:#3d444d}
.line{stroke:#3d444d}.c0{fill:#4493f8}.c1{fill:#f0883e}.c2{fill:#3fb950}.c3{fill:#ab7df8}.c4{fill:#d29922}
.c5{fill:#9198a1}.on{fill:#0d1117}.curve{stroke:#4493f8}.gone{stroke:#f0883e}
.mark{stroke:#f0f6fc}}"""


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A picture of elements, with its title for those who hear it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="'
    return f'{head}{html.escape(title)}"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text whose base line begins, ends or has its middle at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(content)}</text>'
    )


def box(x: float, y: float, width: float, height: float, kind: str, round_: float = 2) -> str:
    """A rectangle."""
    size = f'width="{width:.1f}" height="{height:.1f}" rx="{round_}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}"/>'


def planned(stage: int) -> dict[str, Any]:
    """What `llmkit plan` says of the model on a node at a ZeRO stage."""
    out = io.StringIO()
    settings = [
        f"parallel.zero_stage={stage}",
        "parallel.activation_checkpointing=full",
        "train.micro_batch_size=1",
    ]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        main(["plan", str(ROOT / MODEL), "--device", "h100", "--nodes", "1", "--json", *settings])
    memory: dict[str, Any] = json.loads(out.getvalue())["asked"]["memory"]
    return memory


def by_part(memory: dict[str, Any]) -> dict[str, float]:
    """GiB of a device by part; activations, and what else there is, are one part each."""
    parts = dict.fromkeys(("weights", "gradients", "masters", "moments", "activations", "other"), 0.0)
    for entry in memory["device"]:
        name = entry["name"].partition(":")[0]
        parts[name if name in parts else "other"] += entry["value"] / GIB
    return parts


def memory_picture() -> str:
    """A bar for each ZeRO stage, of the parts of a GPU's memory, and the line that they must not cross."""
    stages = {stage: planned(stage) for stage in range(4)}
    most, scale, left, top = 144.0, 560 / 144.0, 70, 44
    parts = [
        text(
            10,
            20,
            f"Llama 3.1 8B on {DEVICES} H100s, one row of 8,192 tokens a GPU: GiB a GPU, by llmkit plan",
            "strong",
        )
    ]
    for row, (stage, memory) in enumerate(stages.items()):
        x, y = float(left), top + row * 36
        parts.append(text(10, y + 16, f"ZeRO {stage}", "strong"))
        for color, (_, size) in enumerate(by_part(memory).items()):
            parts.append(box(x, y, min(size, most) * scale, 24, f"c{color}", 0))
            x += size * scale
        parts.append(text(x + 6, y + 16, f"{memory['device_bytes'] / GIB:.0f}"))
    limit = left + stages[0]["available"] / GIB * scale
    parts.append(f'<path d="M{limit:.1f} {top - 8}V{top + 140}" class="line" stroke-dasharray="4 3"/>')
    parts.append(
        text(limit, top + 156, f"{stages[0]['available'] / GIB:.0f} GiB: what there is", "", "middle")
    )
    for number, name in enumerate(by_part(stages[0])):
        x = left + number * 100
        parts += [box(x, top + 172, 10, 10, f"c{number}"), text(x + 15, top + 182, name)]
    return svg(700, top + 196, "Memory of a GPU by part at ZeRO 0 to 3", parts)


def mesh_picture(nodes: int = 2, per_node: int = 8, context: int = 2, tensor: int = 2) -> str:
    """The ranks of some nodes: a column for each data index, its ranks along context and tensor in it."""
    side, gap, left, top = 62, 6, 20, 70
    shared = context * tensor
    columns = nodes * per_node // shared
    parts = [
        text(
            left,
            20,
            f"{nodes * per_node} ranks: data {columns} x context {context} x tensor {tensor}",
            "strong",
        )
    ]
    width = tensor * (side + gap) + 20
    for data in range(columns):
        node = data * shared // per_node
        x0 = left + data * (width + 14) + node * 24
        parts += [box(x0 - 8, top - 12, width - 4, context * (side + gap) + 18, "box", 6)]
        parts.append(text(x0 - 8, top - 20, f"data {data}: rows of its own"))
        for along in range(context):
            for index in range(tensor):
                rank = (data * context + along) * tensor + index
                x, y = x0 + index * (side + gap), top + along * (side + gap)
                parts.append(box(x, y, side, side, f"c{index}", 4))
                parts.append(text(x + side / 2, y + 22, f"rank {rank}", "on", "middle"))
                parts.append(text(x + side / 2, y + 38, f"piece {along}", "on", "middle"))
                parts.append(text(x + side / 2, y + 53, f"shard {index}", "on", "middle"))
    bottom = top + context * (side + gap) + 30
    for node in range(nodes):
        first = left + node * (per_node // shared) * (width + 14) + node * 24
        parts.append(text(first - 8, bottom, f"node {node}: {per_node} GPUs", "strong"))
    parts += [
        text(
            left - 8,
            bottom + 24,
            "shard (tensor): of each layer's matrices; neighbours, which have the same rows",
        ),
        text(left - 8, bottom + 42, "piece (context): of the tokens of each row"),
        text(left - 8, bottom + 60, "Gradients are summed, and ZeRO shares out, over data x context."),
    ]
    return svg(left * 2 + columns * (width + 14) + nodes * 24 - 24, bottom + 74, "Ranks of a mesh", parts)


def console_picture() -> str:
    """Lines of a terminal as they were printed."""
    lines = (FOLDER / "console.txt").read_text().splitlines()
    width = max(map(len, lines))
    shown = [
        f'<text x="16" y="{30 + 20 * number}" class="mono" xml:space="preserve" '
        f'textLength="{len(line) * 7.85:.1f}">{html.escape(line)}</text>'
        for number, line in enumerate(lines) if line.strip()
    ]  # fmt: skip
    size = int(width * 7.85 + 32), 20 * len(lines) + 24
    return svg(
        *size,
        "The live view of a run on a terminal",
        [box(0.5, 0.5, size[0] - 1, size[1] - 1, "box", 8), *shown],
    )


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a kept file of docs/pictures/life."""
    return [json.loads(line) for line in (FOLDER / "life" / name).read_text().splitlines()]


def life_picture() -> str:
    """The loss of a run over wall time, what its starts spent in steps, and what happened to it."""
    events, rows, lost = rows_of("events.jsonl"), rows_of("metrics.jsonl"), rows_of("lost.jsonl")
    values = [row["loss_mean"] for row in rows]
    high, low = max(values), min(values)
    ends = [event for event in events if event["event"] in ("stop", "dead_rank", "done")]
    ends[-1] = {**ends[-1], "at": rows[-1]["elapsed_seconds"]}  # without the evaluation behind it
    spans, since = list[tuple[float, float]](), 0.0
    for event in ends:
        first = min(row["elapsed_seconds"] for row in rows if row["elapsed_seconds"] >= since)
        spans.append((first, event["at"]))
        since = event["at"]
    scale = (620 - 70 * (len(spans) - 1)) / sum(last - first for first, last in spans)

    def x(seconds: float) -> float:
        """Steps are drawn to scale; what lies between two starts is as wide as its label."""
        place = 50.0
        for first, last in spans:
            if seconds <= last:
                return place + max(0.0, seconds - first) * scale
            place += (last - first) * scale + 70
        return place - 70

    def curve(rows: list[dict[str, Any]], kind: str) -> str:
        places = [
            f"{x(row['elapsed_seconds']):.1f} {50 + (high - row['loss_mean']) / (high - low) * 140:.1f}"
            for row in rows
        ]
        return f'<path class="curve {kind}" d="M{"L".join(places)}"/>'

    title = (
        "A run over wall time: stopped by SIGTERM, killed by kill -9, each time gone on by the same command"
    )
    parts = [text(10, 20, title, "strong"), text(10, 40, "loss")]
    parts += [text(10, 62, f"{high:.1f}"), text(10, 194, f"{low:.1f}"), curve(lost, "gone")]
    words = {"stop": "SIGTERM: saved", "dead_rank": "kill -9", "done": "done"}
    begun = 0
    for number, (event, (first, last)) in enumerate(zip(ends, spans)):
        own = [row for row in rows if first <= row["elapsed_seconds"] <= last]
        parts += [curve(own, ""), box(x(first), 210, x(last) - x(first), 16, "c2")]
        parts.append(text(x(first), 246, f"steps {begun + 1} to {event['step']}"))
        parts.append(text(x(last), 262, words[event["event"]], "strong", "end"))
        if number + 1 < len(spans):
            pause = f"{spans[number + 1][0] - last:.0f} s"
            parts.append(text(x(last) + 35, 222, pause, "", "middle"))
        saved = [each["step"] for each in events if each["event"] == "save" and each["at"] <= last + 0.5]
        begun = saved[-1]
    for event in events:
        if event["event"] == "save":
            parts.append(f'<path d="M{x(event["at"]):.1f} 206V230" class="mark"/>')
    notes = (
        "green: steps, to scale; strokes: checkpoints; between: the time until the next start's first step",
        "dashed: steps that no checkpoint held when the run was killed; done again, with the same loss",
    )
    parts += [text(10, 286 + 18 * number, note) for number, note in enumerate(notes)]
    return svg(700, 316, title, parts)


def keep(run: Path, before: Path) -> None:
    """Writes what is kept of a run; before: its metrics.jsonl as it was when the run was killed."""
    (FOLDER / "life").mkdir(parents=True, exist_ok=True)
    rows, killed, events = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run / "metrics.jsonl", before, run / "events.jsonl")
    )
    begin = datetime.fromisoformat(events[0]["time"])
    for event in events:  # seconds since the command
        later = (datetime.fromisoformat(event["time"]) - begin).total_seconds()
        event["at"] = round(events[0]["account"]["lost"]["start"] + later, 1)
    lost = [row for row in killed if row not in rows]
    for name, found, wanted in (
        ("metrics", rows, COLUMNS), ("lost", lost, COLUMNS), ("events", events, FACTS)
    ):  # fmt: skip
        kept = [{key: row[key] for key in wanted if row.get(key) is not None} for row in found]
        kept = [row for row in kept if len(row) > 1]
        (FOLDER / "life" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


PICTURES = {"memory": memory_picture, "mesh": mesh_picture, "console": console_picture, "life": life_picture}

if __name__ == "__main__":
    if sys.argv[1:2] == ["keep"]:
        keep(Path(sys.argv[2]), Path(sys.argv[3]))
    for name, picture in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(picture())
