"""A plan in a few lines, as a start shows it, and `llmkit config`."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.memory import show_bytes
from llmkit.config.mistakes import listed
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.form_rules import MEASURED
from llmkit.plan.memory import memory
from llmkit.plan.operators import FORMS
from llmkit.plan.plan import Plan
from llmkit.plan.resolve import AT_START, WITH_TOKENIZER
from llmkit.plan.state_memory import State

Line = tuple[str, str]
"""What it is about, and what there is to say."""


def overview(plan: Plan) -> Iterator[Line]:
    """Layout, sizes, memory and kernels of a run."""
    yield "model", _model(plan)
    text = layout_text(plan.layout) + _recomputed(plan.layout)
    yield "layout", f"{AT_START} (parallel.layout)" if "layout" in plan.pending else text
    yield "step", _step(plan)
    yield "memory", _memory(plan)
    yield from _kernels(plan)


def schedule(config: Config) -> Iterator[Line]:
    """When a run saves and evaluates."""
    saves, every = [], config.evaluate.every_steps
    if config.checkpoint.every_steps:
        saves.append(every_steps(config.checkpoint.every_steps))
    if config.checkpoint.every_minutes:
        saves.append(f"every {minutes(config.checkpoint.every_minutes)}")
    kept = [f"the newest {config.checkpoint.keep_last}"]
    if config.checkpoint.keep_every:
        kept.append(f"one {every_steps(config.checkpoint.keep_every)}")
    if config.checkpoint.keep_best:
        kept.append("the best one")
    yield "saves", f"{listed([*saves, 'at the end'])}; {listed(kept)} are kept"
    yield "evaluates", f"{every_steps(every)} and at the end" if every else "at the end"


def every_steps(count: int) -> str:
    """As in "every 500 steps"."""
    return "every step" if count == 1 else f"every {count:,} steps"


def minutes(count: float) -> str:
    """As in "1 minute" and "2.5 minutes"."""
    return f"{count:g} minute{'s' * (count != 1)}"


def layout_text(layout: Layout) -> str:
    """As in "8 processes: ZeRO-2 x 4, tensor parallel x 2 (DeepSpeed)"."""
    if layout.world_size == 1 and layout.engine == "native":
        return "1 process"
    how = f"ZeRO-{layout.zero_stage}" if layout.zero_stage else "data parallel"
    text = f"{layout.world_size} process{'es' * (layout.world_size > 1)}: {how} x {layout.data_parallel_size}"
    if layout.tensor_parallel_size > 1:
        text += f", tensor parallel x {layout.tensor_parallel_size}"
    if layout.context_parallel_size > 1:
        text += f", context parallel x {layout.context_parallel_size} ({layout.context_parallel_form})"
    if layout.expert_parallel_size > 1:
        text += f", experts over {layout.expert_parallel_size}"
    return text + " (DeepSpeed)" * (layout.engine == "deepspeed")


def _recomputed(layout: Layout) -> str:
    if layout.activation_checkpointing == "none":
        return ""
    every = layout.activation_checkpointing_every
    which = "every block" if every == 1 else f"one block in {every}"
    host = ", its inputs on the host" * layout.offload_activations
    return f"; {layout.activation_checkpointing} activation checkpointing in {which}{host}"


def _model(plan: Plan) -> str:
    if plan.pending.get("vocab_size") == WITH_TOKENIZER:
        return f"its size is {WITH_TOKENIZER}"
    total, trained = plan.model.num_parameters, plan.num_trained
    text = f"{total:,} parameters"
    if isinstance(plan.model, ModelShape):
        text += f", {plan.model.num_hidden_layers} layers of width {plan.model.hidden_size:,}"
        text += f", vocabulary {plan.model.vocab_size:,}"
    if plan.config.train.lora.rank:
        text += f"; {trained:,} of adapters are trained"
    return text


def _step(plan: Plan) -> str:
    """What an optimizer step takes, and how it is divided."""
    config = plan.config
    what = "pairs" if config.data.has_pairs else "sequences"
    each = f"{'2 x ' * config.data.has_pairs}{config.data.sequence_length:,}"
    text = f"{config.train.global_batch_size:,} {what} of {each} tokens = {plan.tokens_per_step:,} tokens"
    if plan.pending.get("micro_batch_size") == AT_START:
        return f"{text}; the micro-batch is {AT_START}"
    ranks, steps = plan.layout.data_parallel_size, plan.accumulation_steps
    text += f", in micro-batches of {plan.micro_batch_size:,}"
    if steps > 1:
        text += f", {steps:,} one after the other"
    text += f", on {ranks:,} ranks" if ranks > 1 else ""
    if plan.padding_rows:
        rows = plan.rows_per_rank * ranks
        text += f"; {plan.padding_rows:,} of {rows:,} rows only fill, as the ranks do not divide them"
    return text


def _memory(plan: Plan) -> str:
    """Of one process, by part; an estimate."""
    if plan.pending.get("vocab_size") == WITH_TOKENIZER:
        return f"{WITH_TOKENIZER}"
    needs, state = memory(plan), plan.state
    parts = [("weights", state.weights), ("gradients", state.gradients), ("optimizer", state.optimizer)]
    if (activations := activation_bytes(plan)) is not None:
        parts.append(("activations up to", activations))
    if needs.buffers:
        parts.append(("buffers", sum(needs.buffers.values())))
    total = sum(size for _, size in parts)
    text = " + ".join(f"{name} {show_bytes(size)}" for name, size in parts)
    unknown = "" if activations is not None else ", and activations"
    return f"{show_bytes(total)}{unknown} a process: {text}{_offloaded(plan.layout, state)}"


def activation_bytes(plan: Plan) -> int | None:
    """Bytes of the activations of a micro-batch; None where they are not known (yet)."""
    needs = memory(plan)
    return None if needs.activations is None or plan.pending else needs.activation_bytes


def _offloaded(layout: Layout, state: State) -> str:
    if layout.offload == "none":
        return ""
    return f"; {show_bytes(state.host)} of it on the host"


def _kernels(plan: Plan) -> Iterator[Line]:
    """The forms that are not plain PyTorch, and why fast ones are not used."""
    kernels = plan.kernels
    if "kernels" in plan.pending:
        yield "kernels", AT_START
        return
    compiled = "torch.compile" if kernels.compiled else "no torch.compile"
    if not kernels.compiled and not any(kernels.uncompiled in note for note in kernels.notes):
        compiled += f" ({kernels.uncompiled})"
    forms: dict[str, list[str]] = {}
    for operator, choice in kernels.operators.items():
        if len(FORMS[operator]) > 1:
            forms.setdefault(choice.form, []).append(operator)
    plain = forms.pop("torch", [])
    parts = [f"{form}: {', '.join(operators)}" for form, operators in forms.items()]
    if plain:
        parts.append(f"plain PyTorch: {', '.join(plain)}")
    yield "kernels", "; ".join([compiled, *parts])
    chosen = kernels.operators.values()
    measured = [f"{each.operator} {each.reason}" for each in chosen if each.reason.startswith(MEASURED)]
    for note in (*measured, *kernels.off, *kernels.notes):
        yield "", note
