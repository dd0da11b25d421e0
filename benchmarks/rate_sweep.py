"""Does one learning rate serve all widths? Trains three widths of what `llmkit new` writes at several rates.

python benchmarks/rate_sweep.py [--widths 64,128,256] [--steps 300] [--out FOLDER]

Every rate of the recipe is multiplied by a factor, at each width and each seed. Where the rules of width are
right, the best factor is the same at all widths. Writes a table and a picture. One thread computes; several
processes, for some of the widths each, may run side by side.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from llmkit.batch import Batch
from llmkit.config.schema import Config
from llmkit.engine.build import build_engine
from llmkit.optim.schedule import step_values
from llmkit.parallel.mesh import Mesh
from llmkit.plan import DeviceFacts, plan_for_shape
from llmkit.recipes.compose import Source, compose
from llmkit.recipes.document import plain
from llmkit.recipes.rules import Size, budget

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
DEPTH, ROWS, LENGTH, BYTES = 2, 8, 128, 257
HELD_OUT_BATCHES = 16
Losses = dict[int, dict[float, list[float]]]
"""Width -> factor -> held-out losses of the seeds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rate_sweep.py", description=__doc__)
    parser.add_argument("--widths", default="64,128,256")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text, losses = corpus(), Losses()
    for width in map(int, options.widths.split(",")):
        losses[width] = {}
        for factor in map(float, options.factors.split(",")):
            losses[width][factor] = [
                train(width, factor, options.steps, seed, text) for seed in range(options.seeds)
            ]
            print(f"width {width}, rates x {factor:g}: {mean(losses[width][factor]):.4f}", flush=True)
    print(table(losses))
    stem = options.out / f"rate-sweep-{options.widths.replace(',', '-')}"
    stem.with_suffix(".md").write_text(table(losses))
    stem.with_suffix(".svg").write_text(picture(losses))
    return 0


def corpus() -> Tensor:
    """The bytes of some of Python's own library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


def train(width: int, factor: float, steps: int, seed: int, text: Tensor) -> float:
    """Held-out loss in nats a byte of one run; infinite where it diverged."""
    size = Size(DEPTH, width, BYTES, LENGTH)
    sections = plain(
        compose("run", size, budget(size), Source({"type": "stdlib"}, {"type": "bytes"}), None, 1)
    )
    optimizer = sections["optimizer"]
    for each in (optimizer, *optimizer.get("groups", ())):
        if "learning_rate" in each:
            each["learning_rate"] *= factor
    sections["run"] |= {"seed": seed}
    sections["train"] |= {
        "global_batch_size": ROWS,
        "micro_batch_size": ROWS,
        "precision": "fp32",
        "max_steps": steps,
    }
    sections["schedule"]["warmup_steps"] = max(1, steps // 30)
    sections["kernels"] = {"compile": False}
    config = Config.model_validate(sections)
    del sections["model"]
    engine = build_engine(
        plan_for_shape(size.shape, sections, DeviceFacts()), Mesh(), device=torch.device("cpu")
    )
    cut = len(text) * 19 // 20
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        batch = rows(text[:cut], generator)
        engine.train_step([batch], batch.labels.numel(), step_values(step, steps, config))
    generator.manual_seed(0)
    batches = [rows(text[cut:], generator) for _ in range(HELD_OUT_BATCHES)]
    with torch.no_grad():
        sums = [engine.model(batch) for batch in batches]
    loss = float(sum(each.nats.sum() for each in sums) / sum(batch.labels.numel() for batch in batches))
    return loss if loss == loss else float("inf")


def rows(text: Tensor, generator: torch.Generator) -> Batch:
    """Rows from random places of a text."""
    starts = torch.randint(0, len(text) - LENGTH - 1, (ROWS, 1), generator=generator)
    found = text[starts + torch.arange(LENGTH + 1)].long()
    return Batch(found[:, :-1].contiguous(), found[:, 1:].contiguous())


def table(losses: Mapping[int, Mapping[float, Sequence[float]]]) -> str:
    """As Markdown: a row a width, the best of it in bold."""
    factors = list(next(iter(losses.values())))
    lines = ["| width |" + "".join(f" x {factor:g} |" for factor in factors), "|--:|" + "--:|" * len(factors)]
    for width, found in losses.items():
        means = [mean(found[factor]) for factor in factors]
        cells = [f"**{value:.4f}**" if value == min(means) else f"{value:.4f}" for value in means]
        lines.append(f"| {width} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(losses: Mapping[int, Mapping[float, Sequence[float]]]) -> str:
    """As SVG: a line a width, the loss over the factor, each from its own best loss."""
    factors = list(next(iter(losses.values())))
    across = {factor: 60 + 360 * index / max(1, len(factors) - 1) for index, factor in enumerate(factors)}
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 300" font-size="12">']
    for shade, (width, found) in enumerate(losses.items()):
        means = {factor: mean(found[factor]) for factor in factors}
        best = min(means.values())
        points = [f"{across[f]:.0f},{250 - 400 * min(0.5, value - best):.0f}" for f, value in means.items()]
        color = f"hsl({110 * shade}, 60%, 40%)"
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{" ".join(points)}"/>')
        parts.append(f'<text x="430" y="{60 + 16 * shade}" fill="{color}">{width}</text>')
    parts += [
        f'<text x="{x:.0f}" y="270" text-anchor="middle">x {factor:g}</text>' for factor, x in across.items()
    ]
    parts.append(
        '<text x="60" y="20">loss above the best of its width (0.1 nats = 40 units) over all rates</text>'
    )
    return "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    sys.exit(main())
