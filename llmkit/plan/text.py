"""A plan as text for people: the values that follow from the settings, and how each came about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkit.config.derive import INTERMEDIATE_SIZES
from llmkit.config.groups import describe_groups
from llmkit.config.memory import parameter_bytes, show_bytes
from llmkit.config.mistakes import listed
from llmkit.config.shape import ModelShape
from llmkit.plan.operators import show_choices
from llmkit.plan.overview import overview, schedule
from llmkit.plan.plan import Plan
from llmkit.plan.resolve import AT_START, TRAINED, WITH_TOKENIZER

Row = tuple[str, int | str, str]
"""Name, value (a text such as "chosen at start" if not known yet), how it came about."""


def show_plan(plan: Plan) -> str:
    """The plan in a few lines, and the derived values, a line each, as YAML comments."""
    lines = [f"#   {name:<9}  {text}\n" for name, text in [*overview(plan), *schedule(plan.config)]]
    return "# plan:\n" + "".join(lines) + _show_values(plan)


def _show_values(plan: Plan) -> str:
    return show_rows("derived", list(derived_values(plan)))


def show_rows(title: str, rows: Sequence[Row]) -> str:
    """Values, a line each, as YAML comments under a title."""
    names = max(len(name) for name, _, _ in rows)
    values = max(len(_grouped(value)) for _, value, _ in rows)
    lines = [f"#   {name:<{names}}  {_grouped(value):<{values}}  {how}\n" for name, value, how in rows]
    return f"# {title}:\n" + "".join(lines)


def derived_values(plan: Plan) -> Iterator[Row]:
    """All derived values, in the order in which they are worth reading."""
    yield from model_values(plan)
    yield from _groups(plan)
    yield from _layout(plan)
    yield from _memory(plan)
    yield from _batch(plan)
    yield from _kernels(plan)


def model_values(plan: Plan) -> Iterator[Row]:
    """Sizes of the model."""
    model, shape = plan.config.model, plan.model
    known, given = plan.pending.get("vocab_size") != WITH_TOKENIZER, "as given"
    vocab_how = "the tokenizer's size" if model.vocab_size == "auto" else given
    if plan.pending.get("vocab_size") == TRAINED:
        vocab_how = TRAINED
    yield "vocab_size", shape.vocab_size if known else WITH_TOKENIZER, vocab_how
    if isinstance(shape, ModelShape):
        yield from _gpt(plan, shape, known)
    counted = "without padding, tied weights once"
    yield "parameters", shape.num_parameters if known else WITH_TOKENIZER, counted
    if isinstance(shape, ModelShape) and shape.expert_layers:
        moe = shape.moe
        how = f"{moe.num_experts_per_tok} of {moe.num_experts} experts in {shape.expert_layers} layers"
        yield "active_parameters", shape.num_active_parameters if known else WITH_TOKENIZER, how
    if (lora := plan.config.train.lora).rank:
        count = len({tensor.name.rpartition(".")[0] for tensor in plan.trained})
        yield "trained_parameters", plan.num_trained, f"adapters of rank {lora.rank} at {count} linear layers"


def _gpt(plan: Plan, shape: ModelShape, known: bool) -> Iterator[Row]:
    model, given = plan.config.model, "as given"
    inner_how = INTERMEDIATE_SIZES[model.mlp][1]
    heads_how = given if model.num_key_value_heads else "as many as query heads"
    padding = f"vocab_size rounded up to {model.vocab_pad_multiple}"
    yield "padded_vocab_size", shape.padded_vocab_size if known else WITH_TOKENIZER, padding
    yield "num_key_value_heads", shape.num_key_value_heads, heads_how
    head_how = given if model.head_dim else f"{model.hidden_size} / {model.num_attention_heads}"
    yield "head_dim", shape.head_dim, head_how
    yield "intermediate_size", shape.intermediate_size, given if model.intermediate_size else inner_how
    length_how = given if model.max_position_embeddings else "data.sequence_length"
    yield "max_position_embeddings", shape.max_position_embeddings, length_how


def _groups(plan: Plan) -> Iterator[Row]:
    """What is updated alike, where the settings name groups of parameters."""
    optimizer, known = plan.config.optimizer, plan.pending.get("vocab_size") != WITH_TOKENIZER
    groups = describe_groups(optimizer, plan.trained) if optimizer.groups else []
    for number, group in enumerate(groups, start=1):
        kinds, elements, rule = (group.pop(name) for name in ("parameters", "elements", "optimizer"))
        values = ", ".join(f"{name} {value}" for name, value in group.items())
        how = f"{rule}, {values}: {listed(kinds, 30)}"
        yield f"parameter_group_{number}", elements if known else WITH_TOKENIZER, how


def _layout(plan: Plan) -> Iterator[Row]:
    asked, layout = plan.config.parallel.zero_stage, plan.layout
    how = f"ZeRO stage {layout.zero_stage}"
    if asked == "auto" and "world_size" in plan.pending:
        how += ", unless the launcher's configuration names one"
    yield "engine", layout.engine, how
    given = plan.config.train.precision != "auto"
    precision_how = "as given" if given else "bf16 where the device has units for it, else fp32"
    yield "precision", plan.pending.get("precision", plan.precision.name), precision_how


def _memory(plan: Plan) -> Iterator[Row]:
    if plan.pending.get("vocab_size") == WITH_TOKENIZER:
        return
    state, precision = plan.state, plan.precision
    each = sum(parameter_bytes(precision, plan.kept_tensors))
    how = "a process: weights, gradients, optimizer state; "
    how += f"{each:.4g} bytes a{' trained' * (plan.config.train.lora.rank > 0)} parameter in {precision}"
    if plan.layout.offload == "cpu":
        how += f", of which {show_bytes(state.host)} on the host"
    yield "training_state", show_bytes(state.total), how
    yield "weights", show_bytes(state.weights), "a process"
    kept = f"a process: {'masters and ' * precision.keeps_masters}moments of {plan.config.optimizer.name}"
    kept += " and a moving average" * plan.config.train.ema.on
    yield "optimizer_state", show_bytes(state.optimizer), kept
    saved = f"fp32 values and {plan.kept_tensors:.3g} more of each parameter that is trained"
    yield "checkpoint", show_bytes(plan.checkpoint_bytes), saved


def _batch(plan: Plan) -> Iterator[Row]:
    train, ranks = plan.config.train, plan.layout.data_parallel_size
    total, length = train.global_batch_size, plan.config.data.sequence_length
    later = plan.pending.get("micro_batch_size") == AT_START
    over = f" / {ranks} data-parallel ranks" if ranks > 1 else ""
    if ranks > 1 and "world_size" in plan.pending:
        over += ", the fewest whose part micro_batch_size divides,"
    micro_how = "auto" if train.micro_batch_size == "auto" else "as given"
    yield "micro_batch_size", AT_START if later else plan.micro_batch_size, micro_how
    steps = AT_START if later else plan.accumulation_steps
    what, each = ("pairs", "2 x ") if plan.config.data.has_pairs else ("sequences", "")
    yield "accumulation_steps", steps, f"{total} {what}{over} / micro_batch_size"
    yield "tokens_per_step", plan.tokens_per_step, f"{total} {what} x {each}{length} tokens"
    if plan.padding_rows:
        rows = plan.rows_per_rank * ranks
        how = f"of {rows} rows a step only fill: {ranks} ranks do not divide {total} {what}"
        yield "wasted_rows", plan.padding_rows, how


def _kernels(plan: Plan) -> Iterator[Row]:
    if "kernels" in plan.pending:
        yield "compiled", AT_START, "where torch.compile can work"
        yield "operators", AT_START, "a form of each, by device, number types and sizes"
        for choice in plan.kernels.operators.values():
            if choice.reason.startswith("as given"):
                yield choice.operator, choice.form, choice.reason
        return
    what = "head, loss and pointwise functions" if plan.kernels.eager_blocks else "blocks, head and loss"
    if plan.kernels.compiled:
        yield "compiled", "yes", f"{what}, by torch.compile"
    else:
        yield "compiled", "no", plan.kernels.uncompiled
    yield from show_choices(plan.kernels.operators)


def _grouped(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
