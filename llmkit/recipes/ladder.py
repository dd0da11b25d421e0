"""`llmkit ladder`: the runs of a folder that `llmkit new --ladder` wrote, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.schema import Config, Data
from llmkit.config.shape import ModelShape
from llmkit.data.located import located
from llmkit.errors import UserError
from llmkit.files import read_json
from llmkit.monitor.flops import train_flops_per_token
from llmkit.monitor.metrics import MetricsFile
from llmkit.recipes.fit import SHARE, fit, interval
from llmkit.recipes.new import TARGET
from llmkit.run_folder import DONE

LEAST = 3
"""Finished rungs that a fit needs."""


@dataclass(frozen=True)
class Rung:
    """A finished run. config: its own record of its settings, as overrides may have changed the file's."""

    file: Path
    config: Config
    vocab_size: int
    parameters: int
    tokens: int
    flops: float
    loss: float
    bits: float | None


def ladder_command(folder: Path, show: Callable[[str], None] = print) -> int:
    """Shows the runs of a ladder, their law, how well it predicts the largest, and what it predicts."""
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(
            f"ladder: {folder} has no *.yaml in it; name the folder that `llmkit new --ladder` wrote"
        )
    rungs, missing, target = [], [], None
    for file in files:
        config = load(file).config
        found = read_rung(file, config)
        if file.stem == TARGET:
            target = (file, config, found if isinstance(found, Rung) else None)
        elif isinstance(found, Rung):
            rungs.append(found)
        else:
            missing.append(found)
    if (sizes := len({rung.flops for rung in rungs})) < LEAST:
        raise UserError(
            f"ladder: {folder}: a fit needs finished runs of {LEAST} sizes, and there are {sizes}"
            + "".join(f"\n  {m}" for m in missing)
        )
    rungs.sort(key=lambda rung: rung.flops)
    data = {rung.file: rung.config.data for rung in rungs}
    if target is not None:
        data[target[0]] = located(target[1].data, Path.cwd())
    _require_alike(data)
    for note in missing:
        show(f"left out: {note}")
    for line in _report(rungs, target):
        show(line)
    return 0


def read_rung(file: Path, planned: Config) -> Rung | str:
    """The run of a configuration; where it has no final loss yet, a sentence that says why."""
    run = Path(planned.run.dir) / planned.run.name
    if not (run / "metrics.jsonl").exists():
        return f"{file}: its run {run} is not there; `llmkit train {file}` makes it"
    config = load(run / "config.yaml").config
    steps = config.train.max_steps
    if steps is None:
        return f"{file}: its run {run} was trained without train.max_steps, so its FLOPs are not known"
    metrics, done = MetricsFile(run / "metrics.jsonl"), (run / DONE).exists()
    row = metrics.evaluation_at(steps)
    if not done or row is None or not isinstance(row["eval_loss"], float):
        last = max((each["step"] for each in metrics.rows() if isinstance(each.get("step"), int)), default=0)
        what = "has no held-out loss at its end" if done else "is not finished"
        return f"{file}: its run {run} {what} (step {last} of {steps}); `llmkit train {file}` goes on with it"
    manifest = read_json(run / "manifest.json", "train this rung again")
    shape = ModelShape.from_dict(manifest.get("model", {}), f"{run}/manifest.json")
    tokens = steps * config.train.global_batch_size * config.data.sequence_length
    flops = planned_flops(config, shape.vocab_size)
    bits = row.get("eval_bits_per_byte")
    return Rung(file, config, shape.vocab_size, shape.num_parameters, tokens, flops, row["eval_loss"], bits)


def planned_flops(config: Config, vocab_size: int) -> float:
    """FLOPs of the run of a configuration that says how many steps it has.

    vocab_size: tokens of its tokenizer.
    """
    assert config.train.max_steps is not None
    length = config.data.sequence_length
    tokens = config.train.max_steps * config.train.global_batch_size * length
    return float(tokens) * train_flops_per_token(resolved_model(config, vocab_size), length)


def _require_alike(data: Mapping[Path, Data]) -> None:
    """Raises UserError where losses cannot be compared: other text, tokens or contexts.

    data: file -> what its run reads.
    """
    (first, mine), *others = data.items()
    for file, other in others:
        for key in ("sources", "tokenizer", "sequence_length", "validation_fraction"):
            if getattr(mine, key) != getattr(other, key):
                raise UserError(
                    f"ladder: the runs of {first} and {file} differ in data.{key}, so their losses cannot be "
                    "compared; train them on the same text, in tokens of the same tokenizer"
                )


def _report(rungs: list[Rung], target: tuple[Path, Config, Rung | None] | None) -> Iterator[str]:
    flops, losses = [rung.flops for rung in rungs], [rung.loss for rung in rungs]
    law = fit(flops, losses)
    yield (
        f"{'rung':<24} {'parameters':>14} {'tokens':>16} {'FLOPs':>9} {'loss':>8} {'bits/byte':>9} {'law':>8}"
    )
    for rung in rungs:
        bits = "" if rung.bits is None else f"{rung.bits:.4f}"
        yield (
            f"{rung.file.stem:<24} {rung.parameters:>14,} {rung.tokens:>16,} {rung.flops:>9.2e} "
            f"{rung.loss:>8.4f} {bits:>9} {law.loss(rung.flops):>8.4f}"
        )
    yield f"law: loss = {law.floor:.3f} + {law.scale:.3f} / (FLOPs / {law.unit:.2e})^{law.exponent:.3f}"
    if len(rungs) > LEAST:
        last = rungs[-1]
        yield _against(
            f"{last.file.stem}, predicted by the rungs below it",
            fit(flops[:-1], losses[:-1]).loss(last.flops),
            last,
        )
    if target is not None:
        yield from _prediction(rungs, *target)


def _prediction(rungs: list[Rung], file: Path, config: Config, done: Rung | None) -> Iterator[str]:
    """What the rungs predict for the target, and how it came out where it is trained."""
    flops, losses = [rung.flops for rung in rungs], [rung.loss for rung in rungs]
    if config.train.max_steps is None:
        yield f"{file}: train.max_steps is not set, so its FLOPs are not known and nothing is predicted"
        return
    at = planned_flops(config, rungs[-1].vocab_size)
    predicted, (low, high) = fit(flops, losses).loss(at), interval(flops, losses, at)
    bits = rungs[-1].bits
    shown = "" if bits is None else f", {predicted * bits / rungs[-1].loss:.4f} bits per byte"
    yield (
        f"{config.run.name} ({at:.2e} FLOPs): {predicted:.4f} nats a token{shown}; {SHARE:.0%} "
        f"between {low:.4f} and {high:.4f}, if the law holds so far"
    )
    if done is not None:
        yield _against(f"{config.run.name}, predicted by all rungs", predicted, done)


def _against(what: str, predicted: float, rung: Rung) -> str:
    return f"{what}: {predicted:.4f}, trained {rung.loss:.4f}: {abs(predicted / rung.loss - 1):.2%} off"
