"""`llmkit ladder`: the runs of a folder that `llmkit new --ladder` wrote, and what they predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmkit.command_line import print_json
from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.schema import Config, Data
from llmkit.config.shape import ModelShape
from llmkit.data.located import located
from llmkit.errors import UserError
from llmkit.files import read_json
from llmkit.monitor.flops import train_flops_per_token
from llmkit.monitor.metrics import MetricsFile
from llmkit.recipes.fit import SHARE, Law, fit, interval
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


@dataclass(frozen=True)
class RungLine:
    """A finished run as it is shown. loss: held out, nats a token; law: what the law gives for it."""

    name: str
    parameters: int
    tokens: int
    flops: float
    loss: float
    bits_per_byte: float | None
    law: float


@dataclass(frozen=True)
class Prediction:
    """A loss that smaller runs predict, in nats a token. trained: what came of it; None: not trained yet.

    low, high: what holds `SHARE` of the predictions with the runs' noise; None: not asked for.
    """

    name: str
    flops: float
    loss: float
    bits_per_byte: float | None
    low: float | None
    high: float | None
    trained: float | None


@dataclass(frozen=True)
class Summary:
    """What a ladder says; `--json` prints it. check: the largest rung by those below it, if these suffice."""

    rungs: list[RungLine]
    law: Law
    check: Prediction | None
    target: Prediction | None
    left_out: list[str]


def ladder_command(folder: Path, *, as_json: bool = False) -> int:
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
    summary = _summary(rungs, target, missing)
    if as_json:
        print_json(asdict(summary))
    else:
        print("\n".join(_report(summary)))
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


def _summary(
    rungs: list[Rung], target: tuple[Path, Config, Rung | None] | None, left_out: list[str]
) -> Summary:
    """What the rungs say.

    rungs: the smallest first. target: its file, its settings, and its run where that is done.
    """
    flops, losses = [rung.flops for rung in rungs], [rung.loss for rung in rungs]
    law, check = fit(flops, losses), None
    lines = [
        RungLine(r.file.stem, r.parameters, r.tokens, r.flops, r.loss, r.bits, law.loss(r.flops))
        for r in rungs
    ]
    if len(rungs) > LEAST:
        last = rungs[-1]
        below = fit(flops[:-1], losses[:-1]).loss(last.flops)
        check = Prediction(last.file.stem, last.flops, below, None, None, None, last.loss)
    predicted = None
    if target is not None and target[1].train.max_steps is None:
        why = "train.max_steps is not set, so its FLOPs are not known and nothing is predicted"
        left_out = [*left_out, f"{target[0]}: {why}"]
    elif target is not None:
        _, config, done = target
        at = planned_flops(config, rungs[-1].vocab_size)
        loss, (low, high), bits = law.loss(at), interval(flops, losses, at), rungs[-1].bits
        bits = None if bits is None else loss * bits / rungs[-1].loss
        trained = None if done is None else done.loss
        predicted = Prediction(config.run.name, at, loss, bits, low, high, trained)
    return Summary(lines, law, check, predicted, left_out)


def _report(found: Summary) -> Iterator[str]:
    for note in found.left_out:
        yield f"left out: {note}"
    yield (
        f"{'rung':<24} {'parameters':>14} {'tokens':>16} {'FLOPs':>9} {'loss':>8} {'bits/byte':>9} {'law':>8}"
    )
    for rung in found.rungs:
        bits = "" if rung.bits_per_byte is None else f"{rung.bits_per_byte:.4f}"
        yield (
            f"{rung.name:<24} {rung.parameters:>14,} {rung.tokens:>16,} {rung.flops:>9.2e} "
            f"{rung.loss:>8.4f} {bits:>9} {rung.law:>8.4f}"
        )
    law = found.law
    yield f"law: loss = {law.floor:.3f} + {law.scale:.3f} / (FLOPs / {law.unit:.2e})^{law.exponent:.3f}"
    if found.check is not None:
        yield _against(f"{found.check.name}, predicted by the rungs below it", found.check)
    if (target := found.target) is not None:
        shown = "" if target.bits_per_byte is None else f", {target.bits_per_byte:.4f} bits per byte"
        yield (
            f"{target.name} ({target.flops:.2e} FLOPs): {target.loss:.4f} nats a token{shown}; {SHARE:.0%} "
            f"between {target.low:.4f} and {target.high:.4f}, if the law holds so far"
        )
        if target.trained is not None:
            yield _against(f"{target.name}, predicted by all rungs", target)


def _against(what: str, of: Prediction) -> str:
    assert of.trained is not None
    return f"{what}: {of.loss:.4f}, trained {of.trained:.4f}: {abs(of.loss / of.trained - 1):.2%} off"
