"""The model card of an export: what the model is, what it was trained on, how to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from llmkit import __version__
from llmkit.config.schema import Config, Source
from llmkit.config.shape import ModelShape
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.hf.architectures import Architecture
from llmkit.monitor.metrics import MetricsFile
from llmkit.weights import AdaptedCheckpoint, AdaptedFolder, CheckpointWeights, Weights

CARD = "README.md"
SETTINGS = "llmkit.yaml"
"""Name of the file with the settings of the run."""


def model_card(
    weights: Weights,
    config: Config | None,
    shape: ModelShape,
    architecture: Architecture,
    dtype: torch.dtype,
    tokenizer: Tokenizer,
    proof: str | None,
) -> str:
    """README.md of an export.

    config: of the run that made the weights. dtype: of the weights. proof: what was compared with
    transformers, in one line.
    """
    run = run_folder(weights)
    name = weights.path.name if run is None else run.name
    kind = str(dtype).removeprefix("torch.")
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- llmkit", "---",
        "", f"# {name}", "",
        f"A language model for transformers, exported by llmkit {__version__}.", "",
        "| | |", "| --- | --- |",
        f"| class | {architecture.class_name}, {shape.num_hidden_layers} x width {shape.hidden_size} |",
        f"| weights | {shape.num_parameters:,} in {kind} |",
        f"| context | {shape.max_position_embeddings} tokens, vocabulary of {shape.vocab_size} |",
        *(f"| {key} | {_cell(value)} |" for key, value in _training(weights, config, run)),
        *([] if config is None else [f"| a text | {_cell(_opening(tokenizer))} |"]),
        f"| proof | {proof or 'logits were not compared with transformers'} |", "",
        "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        "```",
    ]  # fmt: skip
    if config is not None:
        lines += [
            "", "## To make it again", "",
            f"The settings of the run, defaults included, are in `{SETTINGS}` beside this file:", "",
            "```sh", f"llmkit train {SETTINGS}", "```",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def run_folder(weights: Weights) -> Path | None:
    """The run folder that a checkpoint lies in, if it does."""
    return weights.path.parents[1] if weights.path.absolute().parent.name == "checkpoints" else None


def _training(weights: Weights, config: Config | None, run: Path | None) -> Iterator[tuple[str, str]]:
    """What is known of how the weights were made."""
    if isinstance(weights, AdaptedCheckpoint | AdaptedFolder):
        form = weights.adapters.settings.base_form if isinstance(weights, AdaptedCheckpoint) else None
        base = f"the weights of {weights.base.path.name}" + f", rounded to {form}" * (form is not None)
        yield "adapters", f"merged into {base}"
    if isinstance(weights, CheckpointWeights):
        state = weights.checkpoint.state
        if weights.ema:
            yield "moving average", "of the weights, kept in training (train.ema)"
        if imported := state.get("imported"):
            yield "imported from", f"{imported['folder']}, a {imported['class']}"
        if progress := state.get("progress"):
            yield "trained", f"{progress['step']:,} steps, {progress['tokens']:,} tokens that are targets"
        if average := state.get("average"):
            steps = ", ".join(str(each["step"]) for each in average["of"])
            yield "average of", f"{len(average['of'])} checkpoints, of the steps {steps}"
        elif run is not None:
            yield from _losses(run, weights.checkpoint.step)
    if config is not None:
        yield "data", "; ".join(map(_source, config.data.sources))
        yield "batch", f"{config.train.global_batch_size} rows of {config.data.sequence_length} tokens a step"
        yield "optimizer", f"{config.optimizer.name}, learning rate {config.optimizer.learning_rate}"
    if run is not None and (run / "manifest.json").is_file():
        yield "layout", _layout(json.loads((run / "manifest.json").read_text()))


def _opening(tokenizer: Tokenizer) -> str:
    """How documents began in training, and what of it AutoTokenizer does."""
    before, _ = tokenizer.added_by_others
    end, number = tokenizer.end_of_text, tokenizer.end_of_text_id
    does = "puts it there" if before else "puts nothing there: do it yourself where a text begins"
    return f"began with `{end}` (id {number}) in training; AutoTokenizer {does}"


def _losses(run: Path, step: int) -> Iterator[tuple[str, str]]:
    """The losses at a step that the run has recorded."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return
    metrics = MetricsFile(file)
    for row in metrics.rows():
        if row.get("step") == step and row.get("loss_mean") is not None:
            yield "training loss", f"{row['loss_mean']:.4f} nats a token, at step {step}"
    evaluated = metrics.evaluation_at(step)
    if evaluated is not None and evaluated["eval_loss"] is not None:
        yield "held-out loss", f"{evaluated['eval_loss']:.4f} nats a token, at step {step}"


def _source(source: Source) -> str:
    """One source of data. Of local paths the last part alone: others have no use for the rest."""
    where = source.dataset or source.path or []
    paths = [where] if isinstance(where, str) else where
    shown = [path if "://" in path else Path(path).name or path for path in paths]
    return " ".join(filter(None, (source.type, ", ".join(shown), f"(weight {source.weight:g})")))


def _layout(manifest: Mapping[str, Any]) -> str:
    """Processes, ZeRO stage, tensor, context and expert parallelism and device of the run's newest start."""
    layout = manifest.get("layout", {})
    processes = layout.get("world_size", 1)
    said = [f"{processes} processes" if processes > 1 else "1 process"]
    if layout.get("zero_stage"):
        said.append(f"ZeRO-{layout['zero_stage']}")
    if layout.get("tensor_parallel_size", 1) > 1:
        said.append(f"tensor parallel x {layout['tensor_parallel_size']}")
    if layout.get("context_parallel_size", 1) > 1:
        said.append(f"context parallel x {layout['context_parallel_size']}")
    if layout.get("expert_parallel_size", 1) > 1:
        said.append(f"experts over {layout['expert_parallel_size']}")
    return ", ".join([*said, f"on {manifest['device']}"] if "device" in manifest else said)


def _cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
