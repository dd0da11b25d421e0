"""`llmkit generate`: answers to prompts, or a conversation."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmkit.command_line import to_stderr
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.generation.conversation import Conversation, talk
from llmkit.generation.prompt_file import Messages, read_prompts
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Token
from llmkit.generation.showing import Task, json_lines, texts
from llmkit.generation.text import Completion, growing, stream_batch
from llmkit.hf.tokenizer_files import note_on_template
from llmkit.inference import load_model
from llmkit.model.base import Model
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.world import launched, require_alone
from llmkit.plan.precision import choose_precision
from llmkit.prompts import Prompt, chat_prompt, messages_prompt, text_prompt
from llmkit.weights import Weights, open_weights


@dataclass(frozen=True)
class Wanted:
    """The options that both forms of the command have.

    run, ema: as `open_weights` takes them. stops: strings that end an answer. system: message before each
    chat. tensor_parallel: processes that share a model; None = all.
    """

    run: Path
    sampling: Sampling
    max_new_tokens: int
    stops: tuple[str, ...]
    system: str | None
    precision: str
    use_cache: bool
    tensor_parallel: int | None
    ema: bool = False


def generate_command(
    wanted: Wanted,
    prompts: list[str],
    prompt_file: Path | None,
    *,
    chat: bool,
    control_tokens: bool,
    samples: int,
    batch_size: int,
    as_json: bool,
    logprobs: int | None,
) -> int:
    """Prints each prompt and what follows it, as it comes, or a JSON object a line; all in order.

    chat: prompts are questions to the assistant. control_tokens: those that a prompt spells are meant.
    samples: answers to each prompt. batch_size: answers made at once. logprobs: see `Request`.
    """
    given: list[str | Messages] = [*prompts, *(read_prompts(prompt_file) if prompt_file else [])]
    with _ranks(wanted.tensor_parallel) as mesh:
        weights = open_weights(wanted.run, mesh, ema=wanted.ema)
        tokenizer = weights.tokenizer()
        if mesh.rank == 0 and not chat and not control_tokens:
            _note_chats(weights, tokenizer, [text for text in given if isinstance(text, str)])
        if mesh.rank == 0 and chat:
            _note_template(tokenizer)
        tasks = [
            Task(each, prompt, number, replace(wanted.sampling, seed=wanted.sampling.seed + number))
            for each, prompt in zip(
                given, _asked(given, tokenizer, wanted.system, chat, control_tokens), strict=True
            )
            for number in range(samples)
        ]
        model = _load(weights, mesh, wanted.precision)
        if mesh.rank == 0:
            _note_long(tasks, model.context_length)
        data = mesh["data"]
        mine = tasks[data.rank :: data.size]
        pieces = stream_batch(
            model, tokenizer, [task.prompt for task in mine], wanted.max_new_tokens,
            [task.sampling for task in mine], stops=wanted.stops, rows=batch_size,
            use_cache=wanted.use_cache, logprobs=logprobs,
        )  # fmt: skip
        answers = growing(pieces, len(mine))
        if data.size > 1:
            answers = _gathered(answers, len(mine), mesh)
        shown = json_lines(tasks, answers, tokenizer) if as_json else texts(tasks, answers)
        for text in shown:
            if mesh.rank == 0:
                print(text, end="", flush=True)
    return 0


def converse_command(wanted: Wanted) -> int:
    """A conversation with the model in the terminal, or over a pipe a question a line."""
    require_alone("generate: a conversation", os.environ, ", or give --prompt")
    with _ranks(wanted.tensor_parallel) as mesh:
        weights = open_weights(wanted.run, ema=wanted.ema)
        tokenizer = weights.tokenizer()
        chat_prompt(tokenizer, "?", wanted.system)  # raises where it cannot be asked
        _note_template(tokenizer)
        model = _load(weights, mesh, wanted.precision)
        talk(
            Conversation(
                model, tokenizer, wanted.max_new_tokens, wanted.sampling, wanted.stops, wanted.system,
                use_cache=wanted.use_cache,
            )
        )  # fmt: skip
    return 0


@contextmanager
def _ranks(tensor_parallel: int | None) -> Iterator[Mesh]:
    """The processes of this launch, so many of them for each copy of the model."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows a mark for it
        sys.stdout.reconfigure(errors="replace")
    with launched(tensor_parallel, os.environ) as mesh:
        yield mesh


def _load(weights: Weights, mesh: Mesh, precision: str) -> Model:
    """The model on this rank's device, its part if ranks share it."""
    return load_model(weights, mesh.device, choose_precision(precision, device_facts(mesh.device)), mesh)


def _asked(
    given: Sequence[str | Messages],
    tokenizer: Tokenizer,
    system: str | None,
    chat: bool,
    control_tokens: bool,
) -> Iterator[Prompt]:
    """What the model is given for each prompt."""
    for each in given:
        if isinstance(each, str):
            yield (
                chat_prompt(tokenizer, each, system) if chat else text_prompt(tokenizer, each, control_tokens)
            )
        elif not chat:
            raise UserError("generate: the prompt file has chats (messages); ask with --chat")
        else:
            own = each[:1] if each[0]["role"] == "system" else []
            if own and system is not None:
                raise UserError("generate: the prompt file has its own system messages; leave out --system")
            before = [] if system is None else [{"role": "system", "content": system}]
            yield messages_prompt(tokenizer, [*before, *each])


def _gathered(
    answers: Iterable[tuple[int, Completion]], count: int, mesh: Mesh
) -> Iterator[tuple[int, Completion]]:
    """The complete answers of all data-parallel ranks, on rank 0 alone. Collective."""
    done = dict(answers)
    parts = mesh.gather_bytes(json.dumps([asdict(done[number]) for number in range(count)]).encode())
    peers = mesh["context", "tensor"].size
    for rank, part in enumerate(parts[::peers]):  # tensor-parallel peers have the same
        for number, row in enumerate(json.loads(part)):
            tokens = [Token(**{**token, "top": tuple(map(tuple, token["top"]))}) for token in row["tokens"]]
            yield rank + number * mesh["data"].size, Completion(row["text"], tokens, row["end"])


def _note_chats(weights: Weights, tokenizer: Tokenizer, prompts: list[str]) -> None:
    """Says that prompts are taken as text where something else may be meant."""
    sources = weights.config.get("data", {}).get("sources", [])
    if any(source.get("record") == "chat" for source in sources):
        to_stderr(
            "note: this model was trained on chats, and the prompt is plain text to it; ask with --chat"
        )
    found = {text[start:end] for text in prompts for start, end in tokenizer.spelled_controls(text)}
    if found and not tokenizer.control_tokens_in_text:
        to_stderr(
            f"note: {', '.join(sorted(found))} in the prompt is text as any other; with --control-tokens it "
            "is a control token"
        )


def _note_template(tokenizer: Tokenizer) -> None:
    """Says that the chat template is not for the model."""
    if (note := note_on_template(tokenizer)) is not None:
        to_stderr(note)


def _note_long(tasks: Sequence[Task], limit: int) -> None:
    """Says that prompts are longer than what the model can see."""
    count = sum(len(task.prompt.ids) > limit and not task.sample for task in tasks)
    if count:
        what = "a prompt" if count == 1 else f"{count} prompts"
        to_stderr(f"note: the model reads only the end of {what}: its context has {limit} tokens")
