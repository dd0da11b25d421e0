"""Are steps on this CPU as long as they are predicted to be, after its own calibration?

python benchmarks/cpu_steps.py [--precision fp32|bf16] [--compiled] [--rounds N] [--out FILE]

Measures the rates of this CPU as `llmkit doctor --calibrate` does, then predicts and measures the steps that
these were fitted to, and two that the fit never saw. By the processor's time of one thread; takes a minute,
compiled several.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llmkit.calibration.command import describe
from llmkit.calibration.steps import (
    GPT2,
    SAMPLES,
    Sample,
    calibrate_mode,
    gpt,
    plan_of,
    step_of,
    workload,
)
from llmkit.calibration.turns import seconds_in_turns
from llmkit.cores import keep_freed_memory
from llmkit.device import device_facts
from llmkit.estimate.calibration import MEASURED, cpu_fleet, mode_of
from llmkit.estimate.step_parts import step_parts

UNSEEN = (
    Sample("gpt2", gpt(384, 4, 6, 3000, intermediate_size=1536, **GPT2), 256, 4),
    Sample(
        "recomputed", gpt(320, 3, 5, 1500, num_key_value_heads=1), 1024, 1, 2,
        {"activation_checkpointing": "full"},
    ),
)  # fmt: skip


def table(precision: str, compiled: bool, rounds: int) -> list[str]:
    """Lines of Markdown."""
    facts = device_facts(torch.device("cpu"), compiled)
    rates = calibrate_mode(precision, facts, compiled)
    plans = {sample.name: plan_of(sample, precision, facts, compiled) for sample in (*SAMPLES, *UNSEEN)}
    seconds = seconds_in_turns({name: step_of(plan) for name, plan in plans.items()}, rounds)
    lines = [
        describe(mode_of(precision, compiled), rates),
        "",
        "| step | fitted | predicted, ms | measured, ms | error | of it |",
        "| --- | --- | --: | --: | --: | --- |",
    ]
    for name, plan in plans.items():
        found = step_parts(workload(plan), cpu_fleet(rates), MEASURED, rates)
        shares = sorted(found.parts.items(), key=lambda part: -part[1])[:4]
        parts = ", ".join(f"{part} {value / found.seconds:.0%}" for part, value in shares)
        error = found.seconds / seconds[name] - 1.0
        fitted = "yes" if name in {sample.name for sample in SAMPLES} else "**no**"
        both = f"{found.seconds * 1e3:.1f} | {seconds[name] * 1e3:.1f}"
        lines.append(f"| {name} | {fitted} | {both} | {error:+.1%} | {parts} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and adds it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    text = "\n".join(["", *table(options.precision, options.compiled, options.rounds), ""])
    print(text)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(text)


if __name__ == "__main__":
    main()
