"""`llmkit inspect`: a page of what a model does with a text."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from llmkit.device import choose_device, device_facts
from llmkit.errors import UserError
from llmkit.files import write_atomic
from llmkit.inference import load_model
from llmkit.inspect.page import render
from llmkit.inspect.readings import Readings, read_text
from llmkit.model.base import Model
from llmkit.model.gpt import GPT
from llmkit.parallel.world import require_alone
from llmkit.plan.precision import choose_precision
from llmkit.prompts import text_prompt
from llmkit.weights import open_weights

MOST_BYTES = 1 << 25
"""Of a page; browsers open such a one without trouble. A weight of attention takes one."""
ATTRIBUTION_BYTES = 10
"""About what an attribution takes, as text."""


def inspect_command(
    run: Path, prompt: str, output: Path, *, control_tokens: bool, force: bool, precision: str,
    ema: bool = False,
) -> int:  # fmt: skip
    """Writes the page to `output`, where it replaces another with `force` alone.

    control_tokens: those that the prompt spells are meant. ema: see `open_weights`. Raises UserError where
    there is no page of this model and text, or it cannot be written.
    """
    require_alone("inspect", os.environ)
    if output.exists() and not force:
        raise UserError(f"inspect: {output} is there already; name another file, or add --force")
    if not prompt:
        raise UserError("inspect: --prompt is empty; write the text that the model is to read")
    weights, device = open_weights(run, ema=ema), choose_device()
    tokenizer = weights.tokenizer()
    ids = text_prompt(tokenizer, prompt, control_tokens).ids
    used = choose_precision(precision, device_facts(device))
    model = _checked(load_model(weights, device, used), len(ids))
    readings = read_text(model, ids)
    facts = [
        f"Weights: {weights.origin}.",
        f"{len(ids) - 1} tokens behind an end-of-text; {_mean_loss(readings):.4f} nats a token on average; "
        f"computed in {used.weights}.",
    ]
    page = render(readings, tokenizer, run.resolve().name, facts)
    try:
        with write_atomic(output) as file:
            file.write(page.encode(errors="backslashreplace"))  # a folder's name may be no UTF-8
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the command line says so
        raise UserError(f"inspect: --output {output} cannot be written: {error.strerror}") from error
    print(f"wrote {output}: open it in a browser")
    return 0


def _checked(model: Model, length: int) -> GPT:
    """The model, if its inside can be shown for a text of `length` tokens. Raises UserError otherwise."""
    if not isinstance(model, GPT):
        raise UserError(
            f"inspect: shows the blocks of llmkit's GPT, and this model is a {type(model).__name__}"
        )
    maps = model.shape.num_hidden_layers * model.shape.num_attention_heads
    most = min(model.context_length, int((MOST_BYTES / (maps + ATTRIBUTION_BYTES)) ** 0.5))
    if length > most:
        raise UserError(
            f"inspect: --prompt has {length} tokens with the end-of-text before it, and a page of this model "
            f"has room for {most} (its context, and {maps} maps of attention); give a shorter one"
        )
    return model


def _mean_loss(readings: Readings) -> float:
    """Nats a token of the prompt; what follows the last one is not known."""
    return float(readings.losses[:-1].mean())
