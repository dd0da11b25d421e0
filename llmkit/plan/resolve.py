"""Makes the plan of a run, or names everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.config.derive import accumulation_steps, fitting_ranks, known_vocab_size, resolved_model
from llmkit.config.initial_model import model_settings
from llmkit.config.load import Loaded, check_again, with_location
from llmkit.config.mistakes import Mistake, error
from llmkit.config.model_section import Model
from llmkit.config.schema import Config
from llmkit.config.settings import Facts
from llmkit.config.shape import ModelShape
from llmkit.parallel.accelerate import AccelerateConfig
from llmkit.parallel.layout import Layout
from llmkit.parallel.resolve import LaunchResolver
from llmkit.plan.attention_rules import fused_ring
from llmkit.plan.batch import choose_micro_batch
from llmkit.plan.facts import DeviceFacts
from llmkit.plan.form_rules import Situation
from llmkit.plan.operators import choose_operators, fast_forms_off, timed_forms
from llmkit.plan.plan import Kernels, Known, Plan
from llmkit.plan.precision import choose_precision, precision_mistakes, precision_notes
from llmkit.plan.quantised import quantised_mistakes
from llmkit.precision import Precision
from llmkit.registry import find

AT_START = "chosen at start"
WITH_TOKENIZER = "known once the tokenizer is loaded"
TRAINED = "at most; the tokenizer is trained at start"
FEWEST = "as few processes as micro_batch_size fits"


def resolve_plan(loaded: Loaded, known: Known | None = None) -> Plan:
    """Returns the plan of a configuration, complete as far as what is known allows.

    Raises one UserError that names every mistake, each with its file and line.
    """
    known, config, pending = known or Known(), loaded.config, dict[str, str]()
    launch = LaunchResolver(config, loaded.origins, known.accelerate or AccelerateConfig())
    layout = launch.layout(_world_size(config, known, pending))
    if known.device is not None and known.device.kind == "cpu":
        layout = replace(layout, offload_activations=False)
    facts = Facts(
        known.world_size, layout.zero_stage, layout.offload, known.tokenizer_size, known.holds_out,
        layout.engine, launch.accelerate.zero_stage is not None,
    )  # fmt: skip
    asked = launch.precision()
    precision = choose_precision(asked, known.device)
    vocab_size = _vocab_size(config, known, pending)
    kernels, on_device = _kernels(loaded, layout, precision, vocab_size, known, pending)
    on_device += _check_estimate(loaded, known.device)
    found = [with_location(loaded, mistake) for mistake in launch.mistakes + on_device]
    if mistakes := check_again(loaded, facts) + found:
        raise error(mistakes, str(loaded.path))
    if config.parallel.layout == "auto" and known.device is None:
        pending["layout"] = AT_START
    if asked == "auto" and known.device is None:
        pending["precision"] = AT_START
    model = resolved_model(config, vocab_size)
    notes = tuple(f"accelerate's configuration: {note}" for note in launch.accelerate.notes)
    plan = Plan(config, model, layout, precision, 1, 1, kernels, notes, pending)
    if known.device is not None:
        micro_batch = choose_micro_batch(plan, known.device)
    elif config.train.micro_batch_size == "auto":
        pending["micro_batch_size"], micro_batch = AT_START, 1
    else:
        micro_batch = config.train.micro_batch_size
    steps = accumulation_steps(config, layout.data_parallel_size, micro_batch)
    assert steps is not None, "a check has found that it divides the sequences of a rank"
    return replace(plan, micro_batch_size=micro_batch, accumulation_steps=steps)


def plan_for_shape(shape: ModelShape, settings: Mapping[str, Any], device: DeviceFacts) -> Plan:
    """Returns the complete plan for a model of this shape, without a file, data or a tokenizer.

    settings: the sections of a configuration, but for `model`. Raises UserError as `resolve_plan` does.
    """
    config = Config.model_validate({**settings, "model": model_settings(shape)})
    world_size = config.parallel.world_size or 1
    return resolve_plan(Loaded.of(config), Known(world_size, tokenizer_size=shape.vocab_size, device=device))


def _world_size(config: Config, known: Known, pending: dict[str, str]) -> int:
    """Returns the number of processes; if not known, the fewest whose sequences micro-batches divide."""
    if (world := known.world_size or config.parallel.world_size) is not None:
        return world
    pending["world_size"] = FEWEST
    return (fitting_ranks(config) or 1) * config.parallel.ranks_of_a_row


def _vocab_size(config: Config, known: Known, pending: dict[str, str]) -> int:
    """Returns the vocabulary size without padding; 1 where only the tokenizer determines it."""
    size = known_vocab_size(config, known.tokenizer_size)
    if known.tokenizer_size is None and config.model.vocab_size == "auto":
        if size is None:
            pending["vocab_size"] = WITH_TOKENIZER
        elif config.data.tokenizer.type == "bpe":
            pending["vocab_size"] = TRAINED
    return 1 if size is None else size


def _check_estimate(loaded: Loaded, device: DeviceFacts | None) -> list[Mistake]:
    """Checks that an automatic micro-batch on a GPU can be chosen by the memory of activations."""
    config = loaded.config
    if device is None or device.kind == "cpu" or isinstance(config.model, Model):
        return []
    if config.train.micro_batch_size != "auto":
        return []
    what = "{0} needs an estimate of the memory of activations, and there is none for {1}"
    return [loaded.settings.mistake(what, "train.micro_batch_size", "model.type", note="give a number")]


def _kernels(
    loaded: Loaded,
    layout: Layout,
    precision: Precision,
    vocab_size: int,
    known: Known,
    pending: dict[str, str],
) -> tuple[Kernels, list[Mistake]]:
    """Chooses whether modules are compiled, and the form of each operator."""
    config, asked = loaded.config, loaded.config.kernels
    device, compiled, uncompiled = known.device, asked.compile is not False, "as given"
    notes, mistakes = list[str](), list[Mistake]()
    if compiled and not _takes_compilation(config):
        compiled, uncompiled = False, f"model type {config.model.type} does not support it"
    if device is None:
        pending["kernels"] = AT_START
    elif compiled and device.compiler_missing is not None:
        if asked.compile is True:
            what = f"{{0}}: torch.compile cannot work here: {device.compiler_missing}"
            mistakes.append(loaded.settings.mistake(what, "kernels.compile"))
        compiled, uncompiled = False, device.compiler_missing
        notes.append(f"training without torch.compile: {uncompiled}")
    # DeepSpeed gathers weights in the midst of what would be recomputed: no graph holds together.
    again = layout.activation_checkpointing != "none" or config.kernels.mlp_tile > 0
    eager_blocks = compiled and layout.zero_stage == 3 and again
    if eager_blocks and isinstance(config.model, Model):
        what = "head, loss and pointwise functions are"
        notes.append(f"recomputed blocks under ZeRO-3 are not compiled: {what}")
    elif eager_blocks:
        uncompiled = "it cannot take recomputed blocks under ZeRO-3"
        notes.append(f"training without torch.compile: {uncompiled}")
        compiled = eager_blocks = False
    if compiled and layout.expert_parallel_size > 1:
        eager_blocks = True
        what = "they get another number of tokens in every step"
        notes.append(f"blocks whose experts are dealt out are not compiled: {what}")
    shape = _gpt_shape(config, vocab_size)
    situation = Situation(
        config, shape, layout, precision, device, compiled and not eager_blocks, known.attention
    )
    chosen, refused = choose_operators(loaded, situation)
    mistakes += [*refused, *precision_mistakes(loaded, precision, shape, layout, device)]
    mistakes += quantised_mistakes(loaded, shape, layout, device)
    notes += precision_notes(precision, device, compiled and not eager_blocks)
    timed = timed_forms(situation)
    off = tuple(fast_forms_off(situation))
    ring = fused_ring(situation)
    return Kernels(compiled, chosen, tuple(notes), eager_blocks, uncompiled, timed, off, ring), mistakes


def _takes_compilation(config: Config) -> bool:
    """Whether the model has parts to compile; a registered one says so in its `supports`."""
    found = find("model", config.model.type)
    return found is None or "compile" in getattr(found.make, "supports", ())


def _gpt_shape(config: Config, vocab_size: int) -> ModelShape | None:
    """Returns the sizes of our own model; None for another, and where the settings make none."""
    if not isinstance(config.model, Model):
        return None
    try:
        shape = resolved_model(config, vocab_size)
    except ValueError:
        return None  # a check names what is wrong
    return shape if isinstance(shape, ModelShape) else None
