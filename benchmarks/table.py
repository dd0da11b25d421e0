"""The measured figures as a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch
import torch._dynamo

from benchmarks.contenders import CLIPPING, OPTIMIZER, STYLES
from benchmarks.workloads import BATCHES, Workload
from llmkit.config.shape import ModelShape
from llmkit.monitor.flops import train_flops_per_token, utilization

HEAD = (
    "contender", "model", "parameters", "tokens/s: median (quartiles)", "x llmkit: median (range)", "MFU",
    "peak GiB", "first step s", "loss: first, last",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A contender's figures at one workload; those of timing are empty where it failed.

    rounds: seconds of each timed step of each round. losses: the first and the last step's.
    """

    contender: str
    shape: ModelShape
    failed: str | None = None
    rounds: tuple[tuple[float, ...], ...] = ()
    losses: tuple[float, float] = (math.nan, math.nan)
    peak_gib: float = math.nan
    first_step_seconds: float = math.nan

    def quartiles(self) -> list[float]:
        """Of the seconds of all timed steps: first quartile, median, third quartile."""
        steps = [second for seconds in self.rounds for second in seconds]
        return quantiles(steps, n=4, method="inclusive") if len(steps) > 1 else steps * 3


@dataclass(frozen=True)
class Result:
    """All rows of one workload. together: whether the contenders took turns, or ran one after another."""

    workload: Workload
    rows: Sequence[Row]
    together: bool
    notes: Sequence[str] = ()

    def tokens(self) -> int:
        """Tokens of one step."""
        return self.workload.rows * self.workload.length


def page(
    results: Sequence[Result],
    *,
    title: str,
    facts: Mapping[str, str],
    peak: tuple[float | None, str],
    precision: str,
    device: torch.device,
) -> str:
    """The whole page.

    facts: on what and with what it was measured. peak: FLOP/s that MFU refers to, and what they are.
    """
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    for result in results:
        lines += [*section(result, peak[0]), ""]
    notes = general_notes(peak[1], precision, device)
    lines += ["## How to read this", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def section(result: Result, peak: float | None) -> list[str]:
    """One workload: what it is, its table, what is odd about it."""
    shape, work = result.workload.shape, result.workload
    turns = "the contenders took turns" if result.together else "one contender after the other (see below)"
    lines = [
        f"## {work.name}",
        "",
        f"{shape.num_hidden_layers} layers, {shape.hidden_size} wide, {shape.num_attention_heads} heads "
        f"({shape.num_key_value_heads} for keys and values) of {shape.head_dim}, vocabulary "
        f"{shape.vocab_size}; {work.rows} rows of {work.length} tokens a step, ln(vocabulary) = "
        f"{math.log(shape.vocab_size):.2f}; {turns}.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'|'.join(['---', '---', *['--:'] * (len(HEAD) - 2)])}|",
    ]
    base = next((r for r in result.rows if r.contender == "llmkit" and r.failed is None), None)
    lines += [f"| {' | '.join(_cells(row, base, result, peak))} |" for row in result.rows]
    notes = [*result.notes, *_loss_warnings(result)]
    return lines + ([""] if notes else []) + [f"- {note}" for note in notes]


def _cells(row: Row, base: Row | None, result: Result, peak: float | None) -> list[str]:
    shape, own = row.shape, result.workload.shape
    style = "Llama"
    if shape.mlp == STYLES["gpt2"]["mlp"]:
        style = "GPT-2" if shape.position_embedding == "learned" else "GPT-2 with rope"
    same = row.contender != "llmkit" and shape == own
    name = f"{style}{' + QK-norm' if shape.qk_norm else ''}{', the same' if same else ''}"
    cells = [row.contender, name, f"{shape.num_parameters / 1e6:.1f}M"]
    if row.failed is not None:
        reason = row.failed.replace("|", "\\|")
        return [*cells, f"did not run: {reason}", *["-"] * (len(HEAD) - 4)]
    high, rate, low = (result.tokens() / seconds for seconds in row.quartiles())
    share = utilization(rate, train_flops_per_token(shape, result.workload.length), peak)
    return [
        *cells,
        f"{rate:,.0f} ({low:,.0f} to {high:,.0f})",
        "-" if base is None else _ratio(row, base),
        "-" if share is None else f"{share:.1%}",
        f"{row.peak_gib:.2f}",
        f"{row.first_step_seconds:.1f}",
        f"{row.losses[0]:.3f}, {row.losses[1]:.3f}",
    ]


def _ratio(row: Row, base: Row) -> str:
    """Speed as a multiple of llmkit's, compared round by round."""
    if row is base:
        return "1"
    each = [median(ours) / median(theirs) for ours, theirs in zip(base.rounds, row.rounds, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def _loss_warnings(result: Result) -> list[str]:
    """What is wrong with the losses of a contender that ran, if anything is."""
    expected = math.log(result.workload.shape.vocab_size)
    warnings = []
    for row in result.rows:
        first, last = row.losses
        if row.failed is None and not abs(first - expected) < 1.0:
            warnings.append(f"**{row.contender}: the first loss, {first:.3f}, is not near {expected:.2f}**")
        if row.failed is None and not last < first:
            warnings.append(f"**{row.contender}: the loss did not fall ({first:.3f} to {last:.3f})**")
    return warnings


def general_notes(peak_label: str, precision: str, device: torch.device) -> list[str]:
    """What every figure rests on."""
    bf16 = (
        "bf16: llmkit keeps bf16 weights with fp32 masters; the peers keep fp32 weights and run under "
        "torch.autocast, as is usual with them. Moments, loss and softmax are fp32 everywhere."
    )
    fp32 = "fp32 throughout, with PyTorch's default for matrix products (no TF32)."
    allocated = "the most that tensors held (torch.cuda.max_memory_allocated)"
    resident = "the most that its whole process held (resident set: Python, libraries and compiler too)"
    notes = [
        f"A step: forward, backward, clipping at norm {CLIPPING:g}, AdamW (PyTorch's fused; learning rate "
        f"{OPTIMIZER.learning_rate:g}, betas {OPTIMIZER.betas}, weight decay {OPTIMIZER.weight_decay:g} on "
        "matrices); all rows in one micro-batch, no dropout, no recomputation, one device.",
        f"Data: {BATCHES} batches of random tokens (token i as frequent as 1/(i+1)), the same for all, "
        "step by step. The losses are a sanity check, not a comparison: initial weights differ.",
        bf16 if precision == "bf16" else fp32,
        *[
            "Memory that is freed stays in the process, for all contenders, as llmkit has it in training "
            "(`keep_freed_memory`): else page faults take 4 to 6 % of their time."
        ][: device.type == "cpu"],
        "Peers: transformers' GPT2LMHeadModel and LlamaForCausalLM with random weights, sdpa attention, "
        "eager or the whole model under torch.compile, Llama also with Liger's kernels; litgpt's GPT, its "
        "loss compiled with the model. They get llmkit's padded vocabulary too. 'the same': "
        "the architecture that llmkit trains here; else it is one of the same depth, width and heads, with "
        "the MLP's width chosen for equally large blocks. llmkit: as `llmkit train` builds it.",
        "Turns: warm-up, then rounds A-B-C-A-B-C in one process; a turn is one untimed step and the timed "
        "ones. The ratio is taken round by round. Contenders that do not fit into memory side by side run "
        "one after the other, and a change of the machine in between then counts as a difference.",
        "MFU: model FLOPs, 6 N + 12 L d s a token (the full convention: attention counted as if it were not "
        "causal; N = each contender's own parameters, without vocabulary padding and learned positions), "
        f"divided by the peak: {peak_label}.",
        f"Peak memory: {allocated if device.type == 'cuda' else resident} in a separate process that builds "
        f"the contender and takes three steps. First step: the wall time of the first, compilation included, "
        "with an empty compile cache.",
    ]
    if torch._dynamo.config.disable:
        notes.append("**torch.compile is switched off in this environment: nothing is compiled.**")
    return notes
