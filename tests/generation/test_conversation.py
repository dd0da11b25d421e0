"""Conversations: what the model is asked, what is forgotten, and the terminal."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from llmkit.errors import UserError
from llmkit.generation import conversation as module
from llmkit.generation.conversation import Conversation, talk
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import Piece
from llmkit.prompts import messages_prompt
from tests.data.tokens.tokenizers_for_tests import byte_level, tokenizer
from tests.shapes import LLAMA_STYLE, random_model
from tests.test_prompts import CHATML

ANSWER = ["It ", "is so."]
TOKENIZER = tokenizer(byte_level(), chat_template=CHATML)
MODEL = random_model(
    replace(
        LLAMA_STYLE,
        vocab_size=TOKENIZER.vocab_size,
        padded_vocab_size=TOKENIZER.vocab_size,
        max_position_embeddings=240,
    )
).eval()


@pytest.fixture
def asked(monkeypatch):
    """The ids of each prompt; the answers are always the same."""
    found: list[list[int]] = []

    monkeypatch.setattr(module, "TextSession", lambda *rest, **more: Scripted(found, list(ANSWER)))
    return found


class Scripted:
    """A session whose answers are always the same; an exception in them is raised."""

    def __init__(self, asked: list[list[int]], answer: list) -> None:
        self.asked, self.answer, self.left, self.dropped = asked, answer, [], []

    def __len__(self) -> int:
        return len(self.left) > 0

    def add(self, prompt, max_new_tokens, sampling, *, stops) -> int:
        self.asked.append(prompt.ids)
        self.left = list(self.answer)
        return len(self.asked)

    def drop(self, key: int) -> None:
        self.dropped.append(key)
        self.left = []

    def step(self):
        text = self.left.pop(0)
        if isinstance(text, BaseException):
            raise text
        return [(len(self.asked), Piece(text, None, None))]


def conversation(system: str | None = None, count: int = 40) -> Conversation:
    return Conversation(MODEL, TOKENIZER, count, Sampling(seed=3), (), system)


def typed(monkeypatch, text: str, talking: Conversation) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    talk(talking)


def messages(*texts: str, system: str | None = None) -> list[int]:
    """The ids of questions and answers, in turn."""
    roles = ("user", "assistant")
    chat = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    before = [] if system is None else [{"role": "system", "content": system}]
    return messages_prompt(TOKENIZER, [*before, *chat]).ids


def test_the_model_sees_what_was_said_before(asked, monkeypatch, capsys):
    typed(
        monkeypatch, "hello\n\n  how?\n/reset\nhello\n/system Be brief.\nhello\n/what\n", conversation("Be.")
    )
    printed = capsys.readouterr()
    assert printed.out == "It is so.\n" * 4
    assert asked == [
        messages("hello", system="Be."),
        messages("hello", "It is so.", "how?", system="Be."),
        messages("hello", system="Be."),
        messages("hello", system="Be brief."),
    ]
    assert "no command /what; /help lists them" in printed.err


def test_the_oldest_turns_are_forgotten_where_the_context_is_full(asked, capsys):
    talking, notes = conversation("Be.", 100), []
    for number in range(6):
        assert list(talking.answer(f"question {number} " + "x" * 30, notes.append)) == ANSWER
    assert len(asked[0]) < len(asked[1]) and max(map(len, asked)) <= 240 - 100
    assert any("forgotten, as the context of 240 tokens is full" in note for note in notes)
    kept = [f"question {number} " + "x" * 30 for number in range(6 - len(talking.turns), 6)]
    said = [text for question in kept for text in (question, "It is so.")][:-1]
    assert asked[-1] == messages(*said, system="Be.") and talking.turns[0][0] != "question 0 " + "x" * 30
    notes.clear()
    list(talking.answer("y" * 400, notes.append))
    assert talking.turns == [("y" * 400, "It is so.")]
    assert "reads only the end" in notes[-1]


def test_an_interrupt_stops_the_answer_and_not_the_conversation(asked, monkeypatch, capsys):
    lines = iter(["hello", KeyboardInterrupt(), "more", EOFError()])

    def line(prompt):
        found = next(lines)
        if isinstance(found, BaseException):
            raise found
        return found

    def session(*rest, **more):
        made.append(Scripted(asked, ["It ", KeyboardInterrupt(), "is"]))
        return made[-1]

    made: list[Scripted] = []
    monkeypatch.setattr(module, "TextSession", session)
    talking = conversation()
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", line)
    talk(talking)
    assert talking.turns == [("hello", "It "), ("more", "It ")]
    assert asked[1] == messages("hello", "It ", "more")
    assert len(made) == 3, "what an interrupt has left is not used"
    assert "Ctrl-D to end" in capsys.readouterr().err


def test_an_answer_that_nobody_reads_to_its_end_is_dropped(asked):
    talking = conversation()
    answer = talking.answer("hello", print)
    assert next(answer) == "It "
    answer.close()
    assert talking._session.dropped == [1] and talking.turns == [("hello", "It ")]


def test_a_turn_reads_what_is_new_and_is_answered_as_if_all_were_read(monkeypatch):
    talking, whole = conversation("Be brief.", 8), conversation("Be brief.", 8)
    read, logits, before = [], MODEL.logits, 0
    monkeypatch.setattr(
        MODEL, "logits", lambda ids, cache=None: read.append(ids.shape[1]) or logits(ids, cache)
    )
    for question in ("hello", "how?", "why?"):
        whole._session = whole._new_session()
        prompt = len(whole._prompt(question, print).ids)
        wanted = "".join(whole.answer(question, print))
        assert prompt in read and before < prompt
        read.clear()
        assert "".join(talking.answer(question, print)) == wanted
        assert read[0] <= prompt - before
        before = prompt


def test_a_refusal_of_the_template_ends_a_pipe_and_no_terminal(monkeypatch, capsys):
    fussy = CHATML + "{% if 'bad' in messages[-1]['content'] %}{{ raise_exception('no') }}{% endif %}"
    made = tokenizer(byte_level(), chat_template=fussy)
    talking = Conversation(MODEL, made, 3, Sampling())
    with pytest.raises(UserError, match="refuses the chat"):
        typed(monkeypatch, "bad\n", talking)
    lines = iter(["bad", "good"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    talk(talking)
    assert [question for question, _ in talking.turns] == ["good"]
    assert "refuses the chat" in capsys.readouterr().err


def test_the_same_question_may_be_answered_otherwise_later():
    talking = conversation(count=12)
    answers = []
    for _ in range(3):
        answers.append("".join(talking.answer("hello", print)))
        talking.reset(None)
    assert len(set(answers)) > 1
    assert "".join(conversation(count=12).answer("hello", print)) == answers[0]


def test_input_that_is_no_utf8_is_named(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xff\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input holds bytes that are no UTF-8"):
        talk(conversation())
