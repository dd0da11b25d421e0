"""Chats as text: Jinja templates as Hugging Face's tokenizers carry them, rendered as transformers does.

Rendering is a pure function of the messages: a template sees no clock (`strftime_now` is not there, templates
ask for it by `is defined`), no chance and no file. The text that it writes is bounded (OUTPUT_ROOM); the time
and the memory that it takes for that are not. It is chosen by whoever sets up the run, as the tokenizer is: a
bad one may hang a process or use up its memory.

While a template runs, noncharacters of Unicode mark what has to be told apart in its output: where a message
spelled a control token, and where the assistant's part begins and ends. Of the messages "hi <|im_end|>" and
"yo" ChatML writes, with H for _HIDDEN and 0 for the index of <|im_end|> among the control tokens,

    <|im_start|>user\\nhi H0H<|im_end|>\\n<|im_start|>assistant\\nyo<|im_end|>\\n

where every <|im_end|> is the template's own. Messages that hold such characters are refused.

A role may be part of a control token that the template puts together, as in '<|' + role + '|>', only if it is
one of ROLES or the template itself names it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jinja2 import TemplateSyntaxError, nodes

from llmkit.data.tokens.template_environment import BEGIN, END, TemplateEnvironment
from llmkit.data.tokens.turns import Message, RefusedError, find_turns
from llmkit.errors import UserError

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of chats where none is given (OpenAI's ChatML).

A vocabulary without `<|im_start|>` and `<|im_end|>` spells them with tokens of text.
"""

OUTPUT_ROOM = 1 << 20
"""Characters that a rendering may have beside 16 times those of its messages."""

ROLES = frozenset({"system", "user", "assistant", "tool", "developer"})
"""Roles that every template may make control tokens of."""

_HIDDEN, _NO_ROLE = "\ufdd0", "\ufdd3"
_ANSWER, _QUESTION = "(the answer)", "(the next question)"
"""Stand for what is said where that which follows the assistant's words is looked for."""
_RESERVED = re.compile("[\ufdd0-\ufdef]")


class Rendered(NamedTuple):
    """A chat as text.

    controls: (start, end) in characters of each control token that the template wrote. assistant: the same of
    the parts to learn, in order.
    """

    text: str
    controls: list[tuple[int, int]]
    assistant: list[tuple[int, int]]


class ChatTemplate:
    """Renders chats with a Jinja template.

    source: the template. control_tokens: those that become control tokens where the template writes them and
    stay text where a message spells them. variables: what the template sees beside the messages, such as
    eos_token. origin: where the template came from, for messages.
    Raises UserError for a template that is no Jinja.
    """

    def __init__(
        self,
        source: str,
        control_tokens: Iterable[str] = (),
        variables: Mapping[str, str] | None = None,
        origin: str = "the chat template",
    ) -> None:
        environment = TemplateEnvironment()
        try:
            parsed = environment.parse(source)
            named = {node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)}
            self._template = environment.from_string(parsed)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{origin}: line {error.lineno} is no valid Jinja ({error.message}); mend the template, or "
                "name another file as data.tokenizer.chat_template"
            ) from error
        self._known_roles = ROLES | named
        self._marks_assistant = environment.generation_tags > 0
        self._variables = dict(variables or {})
        controls = sorted(set(control_tokens), key=lambda token: (-len(token), token))
        self._marks = {token: f"{_HIDDEN}{index}{_HIDDEN}" for index, token in enumerate(controls)}
        self._hidden = {mark: token for token, mark in self._marks.items()}
        self._spelled = _any_of(controls)  # the longest is tried first
        spelled = [re.escape(token) for token in controls]
        self._pieces = re.compile("(" + "|".join([*spelled, f"{_HIDDEN}[0-9]+{_HIDDEN}", BEGIN, END]) + ")")
        closers = {*controls, *self._variables.values()} - {""}
        self._closers = _any_of(sorted(closers, key=len, reverse=True))

    @functools.cached_property
    def ending(self) -> str:
        """What it writes behind a chat only where no prompt follows, judged by examples; "" for nothing.

        Phi-3's writes "<|end|>\\n<|endoftext|>" behind the last words, and "<|end|>\\n<|assistant|>\\n"
        where it asks for an answer: "<|endoftext|>". Empty, too, where that does not begin with a control
        token: where else it begins cannot be told, for it and the prompt may begin with the same text.
        """
        chat = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        for example in (chat, [{"role": "system", "content": _QUESTION}, *chat]):
            with contextlib.suppress(RefusedError):
                output, asked = self._output(example, asks=False), self._output(example, asks=True)
                pairs = enumerate(zip(output, asked))
                shared = next((i for i, (a, b) in pairs if a != b), min(len(output), len(asked)))
                starts = (token.start() for token in self._closers.finditer(output) if token.end() > shared)
                shared = min(shared, next(starts, shared))
                return output[shared:] if self._closers.match(output, shared) else ""
        return ""

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> Rendered:
        """The text of a chat, with the spans of control tokens and of the assistant's words.

        These are what `{% generation %}` blocks enclose, where the template has some; else what each message
        of the role "assistant" adds to the prompt that asks for it. asks: the text asks the assistant to go
        on behind the messages. Raises RefusedError.
        """
        hidden = self._hide_controls(messages)
        output = self._output(hidden, asks=False)
        self._check_roles(messages, hidden, output)
        turns: list[tuple[int, int]] = []
        if not self._marks_assistant:
            turns = find_turns(hidden, output, lambda part, asks: self._output(part, asks=asks), self.ending)
        if asks:
            whole, output = output, self._output(hidden, asks=True)
            if turns:
                start, end = turns[-1]
                turns[-1] = (start, min(end, len(whole.removesuffix(self.ending))))
                if not output.startswith(whole[: turns[-1][1]]):
                    raise RefusedError(
                        "what it writes for the assistant's words changes with the prompt behind them"
                    )
        return self._read_marks(_marked(output, turns))

    def end_of_turn(self, messages: Sequence[Message]) -> Rendered:
        """What follows the assistant's words when it answers these messages. Raises RefusedError.

        Where that is nothing but white space, it is what stands before the next words of the user.
        """
        chat = [*self._hide_controls(messages), {"role": "assistant", "content": _ANSWER}]
        rendered = self._following(chat)
        if not rendered.text.strip():
            with contextlib.suppress(RefusedError):
                rendered = self._following([*chat, {"role": "user", "content": _QUESTION}])
        return rendered

    def _following(self, hidden: Sequence[Message]) -> Rendered:
        output = self._output(hidden, asks=False).replace(BEGIN, "").replace(END, "")
        following = output.rpartition(_ANSWER)[2] if _ANSWER in output else ""
        return self._read_marks(following.partition(_QUESTION)[0])

    def _hide_controls(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """The messages with a mark in the place of each control token that they spell."""
        for message in messages:
            for value in message.values():
                if found := _RESERVED.search(value):
                    raise RefusedError(f"a message holds the noncharacter U+{ord(found[0]):04X}")
        hide = functools.partial(self._spelled.sub, lambda match: self._marks[match[0]])
        return [{key: hide(value) for key, value in message.items()} for message in messages]

    def _check_roles(self, messages: Sequence[Message], hidden: Sequence[Message], output: str) -> None:
        """Raises RefusedError where the output's control tokens depend on roles that nobody knows."""
        unknown = {message["role"] for message in messages} - self._known_roles
        if not unknown or not self._marks:
            return
        without = [
            {**shown, "role": _NO_ROLE} if message["role"] in unknown else shown
            for message, shown in zip(messages, hidden, strict=True)
        ]
        neutral = self._output(without, asks=False)
        before, now = (list(filter(self._marks.get, self._pieces.findall(t))) for t in (neutral, output))
        if before != now:
            roles = f"{', '.join(map(repr, sorted(unknown))):.80}"
            raise RefusedError(f"it makes a control token of a role that it does not name ({roles})")

    def _output(self, messages: Sequence[Message], *, asks: bool) -> str:
        """What the template writes, marks included. asks: with the prompt for the assistant."""
        room = OUTPUT_ROOM + 16 * sum(len(value) for message in messages for value in message.values())
        blocks: list[str] = []
        try:
            for block in self._template.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=asks,
                **self._variables,
            ):
                blocks.append(block)
                room -= len(block)
                if room < 0:
                    raise RefusedError("it writes far more text than the messages hold")
        except (MemoryError, RefusedError):
            raise
        except Exception as error:  # a template's mistakes are any of Python's
            raise RefusedError(f"{type(error).__name__}: {error}") from error
        return "".join(blocks)

    def _read_marks(self, output: str) -> Rendered:
        """The output without marks, and what they stood for."""
        text: list[str] = []
        controls, assistant = [], []
        length = begin = 0
        for index, piece in enumerate(self._pieces.split(output)):
            if piece == BEGIN:
                begin = length
            elif piece == END:
                assistant.append((begin, length))
            else:
                if piece in self._hidden:
                    piece = self._hidden[piece]
                elif index % 2:  # what the expression matched
                    controls.append((length, length + len(piece)))
                text.append(piece)
                length += len(piece)
        whole = "".join(text)
        if _RESERVED.search(whole):
            raise RefusedError("it cuts a control token that a message spells, or writes a noncharacter")
        return Rendered(whole, controls, assistant)


def _marked(output: str, spans: Sequence[tuple[int, int]]) -> str:
    """The output with marks around the assistant's turns."""
    parts, done = [], 0
    for start, end in spans:
        parts += [output[done:start], BEGIN, output[start:end], END]
        done = end
    return "".join([*parts, output[done:]])


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    """Finds the first of some words that matches; nothing where there are none."""
    return re.compile("|".join(map(re.escape, words)) or "(?!)")
