"""What is done with a trained model: loading it from a checkpoint, sampling, evaluating."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import torch

from llmkit.checkpoint.read import Checkpoint
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.shape import ModelShape
from llmkit.config.stored import read_stored
from llmkit.data.building.prepare import prepare
from llmkit.data.evaluation import HeldOut
from llmkit.data.position import Fingerprint, read_position
from llmkit.data.prepared import Prepared
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.generate import Sampling, stream_text
from llmkit.loop.device import choose_device, choose_micro_batch, choose_precision
from llmkit.model.gpt import GPT
from llmkit.monitor.flops import bits_per_byte, perplexity


def load_model(checkpoint: Checkpoint, device: torch.device, precision: str) -> GPT:
    """The model of a checkpoint on `device`, in evaluation mode; precision: "fp32" or "bf16".

    Weights are rounded from the fp32 masters, as in training. Raises UserError where the checkpoint
    does not hold what its model needs.
    """
    shape = ModelShape.from_dict(checkpoint.model, checkpoint.origin)
    with torch.device(device):
        model = GPT(shape).requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name, parts in model.parts().items():
        weight = parameters[name].zero_()
        for part in parts:
            weight[part.start : part.stop] = checkpoint.read(part.name, "master", part.box)
        if precision == "bf16":
            weight.data = weight.data.bfloat16()
    return model.eval()


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that the model of a checkpoint was trained with."""
    config = json.loads(checkpoint.extra_file("tokenizer_config.json"))
    tokenizer = Tokenizer.from_config(checkpoint.tokenizer_json(), config, str(checkpoint.path))
    known = ModelShape.from_dict(checkpoint.model, checkpoint.origin).vocab_size
    if tokenizer.vocab_size > known:
        raise UserError(
            f"{checkpoint.path}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"but the model knows only {known} tokens"
        )
    return tokenizer


def generate_command(
    path: Path,
    prompts: list[str],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    precision: str,
    use_cache: bool,
) -> int:
    """`llmkit generate`: prints each prompt and what follows it, as it comes."""
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens is {max_new_tokens}, it must be at least 1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows a mark for it
        sys.stdout.reconfigure(errors="replace")
    checkpoint = open_checkpoint(path)
    device = choose_device()
    tokenizer = load_tokenizer(checkpoint)
    model = load_model(checkpoint, device, choose_precision(precision, device))
    for number, prompt in enumerate(prompts):
        print("\n" * (number > 0) + prompt, end="", flush=True)
        for text in stream_text(model, tokenizer, prompt, max_new_tokens, sampling, use_cache):
            print(text, end="", flush=True)
        print()
    return 0


def evaluate_command(path: Path, *, precision: str) -> int:
    """`llmkit evaluate`: held-out loss, perplexity and bits per byte of the newest checkpoint."""
    checkpoint = open_checkpoint(path)
    device = choose_device()
    config = read_stored(checkpoint.config, checkpoint.origin, _to_stderr)
    data = prepare(config.data, _to_stderr, tokenizer=load_tokenizer(checkpoint))
    _check_heldout(checkpoint, data)
    if not data.heldout:
        raise UserError(
            f"{checkpoint.path}: nothing is held out (data.heldout_every is {config.data.heldout_every})"
        )
    # As the run itself evaluates, unless asked otherwise: bf16 and fp32 differ in the fourth digit.
    precision = choose_precision(config.train.precision if precision == "auto" else precision, device)
    model = load_model(checkpoint, device, precision)
    heldout = HeldOut(data, choose_micro_batch(config, model.shape, precision, device))
    if heldout.targets == 0:
        raise UserError(
            f"{checkpoint.path}: no held-out token is a target (data.heldout_every is "
            f"{config.data.heldout_every}), so there is no loss"
        )
    nats = 0.0
    with torch.inference_mode():
        for batch in heldout:
            nats += float(model(batch.to(device)).nats.double().sum())
    loss = nats / heldout.targets
    print(f"checkpoint     {checkpoint.path}")
    print(f"held-out loss  {loss:.4f} nats a token, {heldout.targets:,} tokens")
    print(f"perplexity     {perplexity(loss):.3f}")
    print(f"bits per byte  {bits_per_byte(nats, heldout.text_bytes):.4f}")
    return 0


def _check_heldout(checkpoint: Checkpoint, data: Prepared) -> None:
    """Raises UserError where the held-out text is not that of the run; its training text is of no matter."""
    then = read_position(checkpoint.state["data"]).fingerprint
    now = Fingerprint.model_validate(data.fingerprint)
    held = {source.name: source.heldout for source in then.sources}
    changes = [
        f"source {source.name} has other held-out text"
        for source in now.sources
        if held.get(source.name) != source.heldout
    ]
    if changes:
        raise UserError(
            f"{checkpoint.path}: this is not what the run held out: {'; '.join(changes)}; "
            "put the files back that it was trained with"
        )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
