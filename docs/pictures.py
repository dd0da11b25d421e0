"""Makes the pictures of docs/pictures: `python docs/pictures.py` (`make docs`).

- memory.svg: of `llmkit plan`, the memory of a GPU by part at each ZeRO stage
- mesh.svg: the ranks of two nodes along the dimensions of the mesh

Each is light or dark as the reader's system is, and loads nothing.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmkit.cli import main

FOLDER = Path(__file__).resolve().parent / "pictures"
ROOT = FOLDER.parents[1]
MODEL, DEVICES = "configs/models/llama-3.1-8b.yaml", 8
GIB = 2**30
STYLE = """\
text{font:12px system-ui,sans-serif;fill:#57606a}.strong{fill:#1f2328}
.box{fill:#f6f8fa;stroke:#d0d7de}.line{fill:none;stroke:#d0d7de}.on{fill:#fff}
.c0{fill:#0969da}.c1{fill:#bc4c00}.c2{fill:#1a7f37}.c3{fill:#8250df}.c4{fill:#9a6700}.c5{fill:#6e7781}
@media(prefers-color-scheme:dark){text{fill:#9198a1}.strong{fill:#f0f6fc}.box{fill:#151b23;stroke:#3d444d}
.line{stroke:#3d444d}.c0{fill:#4493f8}.c1{fill:#f0883e}.c2{fill:#3fb950}.c3{fill:#ab7df8}.c4{fill:#d29922}
.c5{fill:#9198a1}.on{fill:#0d1117}}"""


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


PICTURES = {"memory": memory_picture, "mesh": mesh_picture}

if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(picture())
