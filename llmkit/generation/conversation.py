"""A conversation with a model: what was said, and the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from llmkit.command_line import to_stderr
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import TextSession
from llmkit.model.base import Model
from llmkit.prompts import Prompt, messages_prompt

COMMANDS = """\
/reset         forget what was said
/system TEXT   begin anew with this system message; without TEXT, with none
/help          these lines
Ctrl-C stops an answer, Ctrl-D ends the conversation."""


class Conversation:
    """Questions and answers so far. system: message before them. stops: strings that end an answer."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        sampling: Sampling,
        stops: Sequence[str] = (),
        system: str | None = None,
        *,
        use_cache: bool = True,
    ) -> None:
        self.tokenizer, self.system = tokenizer, system
        self.turns: list[tuple[str, str]] = []
        self._model, self._max_new_tokens, self._stops = model, max_new_tokens, stops
        self._sampling, self._use_cache = sampling, use_cache
        self._asked = 0
        self._session = self._new_session()

    def _new_session(self) -> TextSession:
        """A session that keeps what it has read: most of a turn was in the turn before."""
        return TextSession(self._model, self.tokenizer, use_cache=self._use_cache, keep=True)

    def reset(self, system: str | None) -> None:
        """Forgets what was said."""
        self.turns, self.system = [], system

    def answer(self, question: str, note: Callable[[str], None]) -> Generator[str, None, None]:
        """Pieces of the answer as they come. What was given out until it was closed is remembered.

        note: gets a line on what is forgotten to make room.

        Raises UserError where the template refuses the chat.
        """
        prompt = self._prompt(question, note)
        sampling = replace(self._sampling, seed=(self._sampling.seed + self._asked) % 2**63)
        self._asked += 1
        key = self._session.add(prompt, self._max_new_tokens, sampling, stops=self._stops)
        said = ""
        try:
            while len(self._session):
                for _, piece in self._session.step():
                    said += piece.text
                    yield piece.text
        except GeneratorExit:
            if len(self._session):
                self._session.drop(key)
            raise
        except BaseException:  # in the midst of a step
            self._session = self._new_session()
            raise
        finally:
            self.turns.append((question, said))

    def _prompt(self, question: str, note: Callable[[str], None]) -> Prompt:
        """The chat with the question; the oldest turns are dropped until there is room for an answer."""
        limit = self._model.context_length
        room = limit - min(self._max_new_tokens, limit // 2)
        dropped = 0
        while True:
            prompt = messages_prompt(self.tokenizer, self._messages(question, self.turns[dropped:]))
            if len(prompt.ids) <= room or dropped == len(self.turns):
                break
            dropped += 1
        if dropped:
            del self.turns[:dropped]
            turns = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
            note(f"note: {turns} forgotten, as the context of {limit} tokens is full")
        if len(prompt.ids) > limit:
            note(f"note: the model reads only the end of this: its context has {limit} tokens")
        return prompt

    def _messages(self, question: str, turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, said in turns:
            found += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return [*found, {"role": "user", "content": question}]


def talk(conversation: Conversation) -> None:
    """Reads questions from standard input until it ends; answers on standard output.

    In a terminal lines can be edited; of a pipe each line is a question, and nothing but answers is printed.
    """
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  lets `input` edit lines
        to_stderr("Talk to the model; /help for commands, Ctrl-D to end.")
    while (line := _read(terminal)) is not None:
        question = line.strip()
        if question.startswith("/"):
            _obey(conversation, question)
        elif question:
            _answer(conversation, question, terminal)


def _read(terminal: bool) -> str | None:
    """The next line; None at the end."""
    while True:
        try:
            return input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return None
        except UnicodeDecodeError as error:
            raise UserError("generate: standard input holds bytes that are no UTF-8; convert it") from error
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()


def _answer(conversation: Conversation, question: str, terminal: bool) -> None:
    answer = conversation.answer(question, to_stderr)
    try:
        with contextlib.closing(answer):
            for text in answer:
                print(text, end="", flush=True)
    except KeyboardInterrupt:
        if not terminal:
            raise
    except UserError as error:
        if not terminal:
            raise
        to_stderr(f"llmkit: {error}")
        return
    print(flush=True)


def _obey(conversation: Conversation, line: str) -> None:
    """Does what a line that begins with a slash asks for."""
    command, _, text = line.partition(" ")
    if command == "/reset":
        conversation.reset(conversation.system)
        to_stderr("note: what was said is forgotten")
    elif command == "/system":
        conversation.reset(text.strip() or None)
        to_stderr("note: begun anew, " + ("with this system message" if conversation.system else "with none"))
    elif command == "/help":
        to_stderr(COMMANDS)
    else:
        to_stderr(f"note: there is no command {command[:40]}; /help lists them")
