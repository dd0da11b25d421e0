"""`llmkit generate`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.device import choose_device, device_facts
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import stream_text
from llmkit.inference import load_model
from llmkit.plan.precision import choose_precision
from llmkit.prompts import chat_prompt, text_prompt
from llmkit.weights import Weights, open_weights


def generate_command(
    path: Path,
    prompts: list[str],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    chat: bool,
    system: str | None,
    control_tokens: bool,
    precision: str,
    use_cache: bool,
) -> int:
    """`llmkit generate`: prints each prompt and what follows it, as it comes.

    chat: prompts are questions to the assistant. system: message before each of them. control_tokens: those
    that a prompt spells are meant.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows a mark for it
        sys.stdout.reconfigure(errors="replace")
    weights = open_weights(path)
    device = choose_device()
    tokenizer = weights.tokenizer()
    asked = [
        chat_prompt(tokenizer, prompt, system) if chat else text_prompt(tokenizer, prompt, control_tokens)
        for prompt in prompts
    ]
    if not chat and not control_tokens:
        _note_chats(weights, tokenizer, prompts)
    model = load_model(weights, device, choose_precision(precision, device_facts(device)))
    for number, prompt in enumerate(asked):
        print("\n" * (number > 0) + prompt.shown, end="", flush=True)
        for text in stream_text(model, tokenizer, prompt, max_new_tokens, sampling, use_cache):
            print(text, end="", flush=True)
        print()
    return 0


def _note_chats(weights: Weights, tokenizer: Tokenizer, prompts: list[str]) -> None:
    """Says that prompts are taken as text where something else may be meant."""
    sources = weights.config.get("data", {}).get("sources", [])
    if any(source.get("record") == "chat" for source in sources):
        _to_stderr(
            "note: this model was trained on chats, and the prompt is plain text to it; ask with --chat"
        )
    found = {text[start:end] for text in prompts for start, end in tokenizer.spelled_controls(text)}
    if found and not tokenizer.control_tokens_in_text:
        _to_stderr(
            f"note: {', '.join(sorted(found))} in the prompt is text as any other; with --control-tokens it "
            "is a control token"
        )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
