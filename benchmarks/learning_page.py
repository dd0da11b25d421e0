"""The results of the recipes as a Markdown page, from as many runs as there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from benchmarks.learning_contenders import OURS
from benchmarks.learning_store import KINDS, Findings, Kind, Line, tuning_steps

HEAD = ("contender", "parameters", "rates x", "CPU s a step", "x llmkit", "steps", "bits per byte", "seeds",
        "minus llmkit")  # fmt: skip
NOTES = (
    "Bits per byte of the held-out files after the last step: mean and standard deviation over the seeds. "
    "A seed is another set of initial weights and another order of the text; of one seed all contenders "
    "get the same batches in the same order.",
    "Rates x: the factor times all learning rates of the recipe, the best of a sweep with one seed and a "
    "quarter of the steps, the same for every contender: 1/4 to 4 by factors of two, and further outwards "
    "while the best one lay at an end.",
    "CPU s a step: processor seconds of the whole process (forward, backward, update; not compilation, "
    "text or evaluation), the median of steps that the contenders took in turns in one process, so that "
    "other work on the machine slows all alike. At equal seconds each contender has as many steps as fit "
    "into those of llmkit's run at equal tokens, and its schedule spans exactly these.",
    "Minus llmkit: the difference of the means; negative = better than llmkit. `*`: larger than twice its "
    "standard error.",
    "llmkit: configs/demo.yaml; at other sizes what `llmkit new` writes for that depth, width and number "
    "of steps. nanogpt: AdamW 6e-4, betas 0.9 and 0.95, weight decay 0.1, cosine to a tenth. llama: "
    "transformers' LlamaConfig, AdamW as its Trainer's defaults (5e-5, linear, betas 0.9 and 0.999, no "
    "decay). nanochat: its recipe of summer 2026 with the size's heads of keys and values; nanochat-mha: "
    "with as many as heads, as published.",
    "Everything is compiled by torch.compile, with products in the precision of this page's head. llmkit "
    "has kernels of its own for this processor, the peers those of PyTorch; at equal tokens that is no "
    "difference.",
)


def page(
    all_findings: Sequence[Findings], contenders: Sequence[str], title: str, facts: Mapping[str, str],
    failed: Sequence[str] = (),
) -> str:  # fmt: skip
    """The whole page. failed: sentences on what could not run."""
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    for findings in all_findings:
        lines += _section(findings, contenders)
    if failed:
        lines += [*(f"- {sentence}" for sentence in failed), ""]
    return "\n".join([*lines, "## How to read this", "", *(f"- {note}" for note in NOTES)]) + "\n"


def _section(findings: Findings, contenders: Sequence[str]) -> list[str]:
    """A size: its two tables and the sweep; nothing where no run has ended."""
    size = findings.size
    names = [name for name in contenders if any(findings.of(name, kind) for kind in KINDS)]
    if not names:
        return []
    lines = [
        f"## {size.name}", "",
        f"{size.layers} layers, {size.width} wide, {size.heads} heads ({size.kv_heads} for keys and values), "
        f"vocabulary {size.vocabulary}; {size.rows} rows of {size.length} tokens a step. "
        f"{_dates(findings, names)}",
        "",
    ]  # fmt: skip
    tables: tuple[tuple[Kind, str], ...] = (
        ("tokens", f"Equal tokens, {size.tokens:,}:"),
        ("seconds", "Equal processor seconds, those of llmkit above:"),
    )
    for kind, what in tables:
        lines += [what, "", *_table(HEAD, [_row(findings, name, kind) for name in names]), ""]
    factors = sorted({factor for name in names for factor in findings.sweep(name)})
    if factors:
        sweeps = {name: findings.sweep(name) for name in names}
        rows = [[name, *(_bits(sweeps[name].get(factor)) for factor in factors)] for name in names]
        head = ("rates x", *(f"{factor:g}" for factor in factors))
        steps = tuning_steps(size)
        lines += [f"The sweep: bits per byte after {steps} steps, one seed.", "", *_table(head, rows), ""]
    return lines


def _row(findings: Findings, name: str, kind: Kind) -> list[str]:
    lines, ours = findings.counted(name, kind), findings.counted(OURS, kind)
    pace, factor = findings.pace(name), findings.factor(name)
    known = [*lines, *findings.of(name, "pace"), *findings.of(name, "tune")]
    steps = findings.size.steps if kind == "tokens" else findings.steps_at_equal_seconds(name)
    seconds = _step_seconds(findings, name)
    return [
        name,
        f"{known[0].parameters / 1e6:.2f}M" if known else "-",
        "-" if factor is None else f"{factor:g}",
        "-" if seconds is None else f"{seconds:.3f}",
        "-" if pace is None else f"{pace:.2f}",
        "-" if steps is None else f"{steps:,}",
        _spread(lines),
        ", ".join(str(line.job.seed) for line in sorted(lines, key=lambda each: each.job.seed)) or "none yet",
        "-" if name == OURS else _difference(lines, ours),
    ]


def _step_seconds(findings: Findings, name: str) -> float | None:
    """Of the turns; of llmkit, those of the first contender's turns."""
    if name != OURS:
        return next((line.step_seconds for line in findings.of(name, "pace")), None)
    paces = [line for other in findings.recipes for line in findings.of(other, "pace")]
    return next((line.reference[0] for line in paces if line.reference is not None), None)


def _values(lines: Sequence[Line]) -> list[float]:
    return [math.inf if line.bits_per_byte is None else line.bits_per_byte for line in lines]


def _spread(lines: Sequence[Line]) -> str:
    values = _values(lines)
    if not values:
        return "-"
    if math.inf in values:
        return f"{values.count(math.inf)} of {len(values)} diverged"
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _difference(lines: Sequence[Line], ours: Sequence[Line]) -> str:
    """Of the means, with a star where it is more than chance."""
    theirs, own = _values(lines), _values(ours)
    if not theirs or not own or math.inf in (*theirs, *own):
        return "-"
    difference = mean(theirs) - mean(own)
    if min(len(theirs), len(own)) < 2:
        return f"{difference:+.4f}"
    error = math.sqrt(sum(stdev(each) ** 2 / len(each) for each in (theirs, own)))
    return f"{difference:+.4f}{' *' if abs(difference) > 2 * error else ''}"


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if math.isfinite(value) else "diverged"


def _dates(findings: Findings, names: Sequence[str]) -> str:
    """When the runs were made, and at which commits."""
    lines = [line for name in names for kind in KINDS for line in findings.of(name, kind)]
    dates = sorted({line.facts.get("date", "?") for line in lines})
    commits = sorted({line.facts.get("commit", "?") for line in lines})
    loads = sorted({float(line.facts["load"]) for line in lines if "load" in line.facts})
    load = f"; load of the machine {loads[0]:g} to {loads[-1]:g}" if loads else ""
    return f"Runs of {' to '.join(dict.fromkeys((dates[0], dates[-1])))} at {', '.join(commits)}{load}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = f"|{'|'.join(['---', *['--:'] * (len(head) - 1)])}|"
    return [f"| {' | '.join(head)} |", line, *(f"| {' | '.join(row)} |" for row in rows)]
