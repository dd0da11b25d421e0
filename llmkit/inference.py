"""Loading a trained model, and evaluating it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from llmkit.command_line import to_stderr
from llmkit.config.heldout import nothing_held_out
from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.config.stored import read_stored
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.device import choose_device, device_facts
from llmkit.errors import UserError
from llmkit.evaluation_data import heldout_of_run, other_data, settings_for
from llmkit.files import plain
from llmkit.kernels.operators import Operators
from llmkit.model.base import Model
from llmkit.model.build import build_model, tensor_parallel_of
from llmkit.monitor.flops import bits_per_byte, perplexity
from llmkit.monitor.text import shown_bits
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import full_box
from llmkit.parallel.world import launched
from llmkit.plan.batch import choose_evaluation_batch
from llmkit.plan.precision import choose_precision, fp8_missing
from llmkit.precision import PRECISIONS, Precision, torch_dtype
from llmkit.weights import CheckpointWeights, Weights, model_of, open_weights


def load_model(
    weights: Weights, device: torch.device, precision: Precision, mesh: Mesh | None = None
) -> Model:
    """The model of stored weights on `device`, in evaluation mode, its parameters rounded to `precision`.

    mesh: of several ranks; along its tensor dimension each rank holds, and reads, only its slices.
    Raises UserError where the weights are not those that the model needs.
    """
    spec = model_of(weights)
    operators = Operators.of({"linear": "fp8"} if precision.linear == "fp8" else None)
    tp = None if mesh is None else tensor_parallel_of(spec, mesh, sequence_parallel=False)
    with torch.device(device), _parameters_of(torch_dtype(precision.weights)):
        model = build_model(spec, tp, operators).requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name, parts in model.parameter_slices().items():
        weight = parameters[name].zero_()
        rows = torch.atleast_1d(weight)  # one number may have no dimension
        for part in parts:
            rows[part.start : part.stop] = weights.read(part.name, part.box)
    for name, buffer in model.full_buffers().items():
        buffer.copy_(weights.read(name, full_box(tuple(buffer.shape))))
    model.has_weights = True
    return model.eval()


@contextmanager
def _parameters_of(dtype: torch.dtype) -> Iterator[None]:
    """In here, modules hold their parameters in this type as soon as they have made them; buffers stay."""

    def convert(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        parameter.data = parameter.data.to(dtype)

    handle = register_module_parameter_registration_hook(convert)
    try:
        yield
    finally:
        handle.remove()


def load_for_use(
    weights: Weights, device: str | None = None, precision: str = "auto"
) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer of some weights. device: as torch names it; default: the GPU, if any."""
    where = choose_device() if device is None else torch.device(device)
    used = choose_precision(precision, device_facts(where))
    return load_model(weights, where, used), weights.tokenizer()


@dataclass(frozen=True)
class HeldOutLoss:
    """How well a model predicts text it was not trained on.

    loss: nats per target. targets: how many. text_bytes: UTF-8 bytes of the text, end-of-text not counted.
    """

    loss: float
    targets: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """All nats over the bytes of the text, in bits; None where the tokens stand for no text."""
        return bits_per_byte(self.loss * self.targets, self.text_bytes)


def evaluate_weights(
    weights: Weights,
    precision: str,
    other: str | None,
    note: Callable[[str], None],
    mesh: Mesh | None = None,
) -> HeldOutLoss:
    """The loss of a model on what its run held out, or on other data (`evaluation_data.other_data`).

    mesh: of several ranks, which all call it: they share each copy of the model along the tensor dimension,
    and the rows along the others. Raises UserError where there is nothing to evaluate on.
    """
    mesh = Mesh(device=choose_device()) if mesh is None else mesh
    spec, tokenizer, device = model_of(weights), weights.tokenizer(), mesh.device
    with fail_together(mesh):
        config, data = _heldout_of(weights, other, tokenizer, note)
    # As the run itself evaluates, unless asked otherwise: bf16 and fp32 differ in the fourth digit.
    asked = config.train.precision if precision == "auto" else precision
    used = choose_precision(asked, device_facts(device))
    shape = spec if isinstance(spec, ModelShape) else None
    if used.linear == "fp8" and fp8_missing(shape, Layout(), device_facts(device)) is not None:
        used = PRECISIONS["bf16"]  # the same weights
    model = load_model(weights, device, used, mesh)
    fitting = choose_evaluation_batch(config, spec, used, device_facts(device))
    rows = min(int(text) for text in mesh.all_gather_text(str(fitting)))
    heldout = EvalLoader(data, rows, mesh["data"].rank, mesh["data"].size)
    if heldout.targets == 0:
        why = nothing_held_out(Loaded.of(config, "the run's settings").settings)
        raise UserError(f"{weights.path}: no held-out token is a target, so there is no loss: {why}")
    nats = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode():
        for batch in heldout:
            nats += model(batch.pinned_for(device).to(device)).nats.double().sum()
    total = float(mesh["data", "context"].sum(nats))
    return HeldOutLoss(total / heldout.targets, heldout.targets, heldout.text_bytes)


def _heldout_of(
    weights: Weights, other: str | None, tokenizer: Tokenizer, note: Callable[[str], None]
) -> tuple[Config, PreparedData]:
    """The settings and the data for `evaluate_weights`."""
    if other is not None:
        config = settings_for(weights, other, note)
        data = other_data(other, config, tokenizer, note)
    elif weights.config and isinstance(weights, CheckpointWeights):
        config = read_stored(weights.config, weights.origin, note)
        data = heldout_of_run(weights.checkpoint, config, tokenizer, note)
    else:
        why = "no run of llmkit made it, so no text is held out"
        raise UserError(f"{weights.path}: {why}; name data with --data")
    if data.has_pairs:
        raise UserError(
            f"{weights.path}: what the run held out are pairs of answers, whose loss is in its metrics.jsonl "
            "(eval_loss, eval_rewards/...); name text with --data"
        )
    return config, data


def evaluate_command(
    path: Path, *, precision: str, other: str | None = None, as_json: bool = False, tensor_size: int = 1,
    ema: bool = False,
) -> int:  # fmt: skip
    """`llmkit evaluate`: held-out loss, perplexity and bits per byte of a model (of a run the newest).

    other: names other data than the run's held-out text (see `evaluation_data.other_data`). as_json: prints
    one JSON object. tensor_size: processes of the launch that share each copy of the model. ema: see
    `open_weights`.
    """
    with launched(tensor_size, os.environ) as mesh:
        weights = open_weights(path, mesh, ema=ema)
        note = to_stderr if mesh.rank == 0 else lambda line: None
        found = evaluate_weights(weights, precision, other, note, mesh)
    if mesh.rank > 0:
        return 0
    if as_json:
        figures = {
            "checkpoint": str(weights.path), "ema": ema, "data": other, "loss": found.loss,
            "targets": found.targets, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte,
        }  # fmt: skip
        print(json.dumps(plain(figures)))
        return 0
    print(f"checkpoint     {weights.path}")
    if ema:
        print("weights        their moving average")
    if other is not None:
        print(f"data           {other}")
    print(f"held-out loss  {found.loss:.4f} nats a token, {found.targets:,} tokens")
    print(f"perplexity     {found.perplexity:.3f}")
    print(f"bits per byte  {shown_bits(found.bits_per_byte)}")
    return 0
