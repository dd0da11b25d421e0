"""Where the assistant's turns are found, and at which price."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmkit.data.tokens.chat import CHATML, ChatTemplate
from llmkit.data.tokens.turns import WINDOW, Message, RefusedError, find_turns

# In the shape of those that many models came with: the first message decides what stands before it.
FIRST = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}Default.{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = (  # answers of tools are grouped: what is written for one depends on its neighbours
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}<user>{% endif %}({{ m['content'] }})"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}<end>{% endif %}"
    "{% else %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CLOSED = (  # in the shape of Phi-3's: what ends the text is written only where no prompt does
    "{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>\n' ~ m['content'] ~ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CLOSED_CONTROLS = ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>", "<|endoftext|>"]
LAST_HAS_SYSTEM = (  # in the shape of Mistral's: the system's words stand in the last message of the user
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] ~ ' ' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ '[INST] ' ~ (system if loop.last) ~ m['content'] "
    "~ '[/INST]' }}{% else %}{{ m['content'] ~ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # in the shape of Qwen3's: only the last answer keeps the thoughts
    "{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>' ~ ('<think></think>' if loop.last) ~ m['content'] ~ "
    "'<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NUMBERED = CHATML.replace("message['content']", "message['content'] ~ loop.index")
FORGETFUL = "{% for m in messages %}{{ m['content'] if loop.last else '...' }}{% endfor %}"


def talk(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role[0]}{number}"} for number, role in enumerate(roles)]


LONG = talk("system", "user", *["assistant", "tool", "tool", "assistant", "user"] * 40, "assistant", "user")
TWICE = talk("user", *["assistant", "assistant", "user"] * 30)
BEGUN = talk(*["assistant", "user"] * 30)


def made_of(template: str) -> ChatTemplate:
    return ChatTemplate(template, [*CLOSED_CONTROLS, "<think>"], {"eos_token": "<|endoftext|>"})


def spoken(template: str, messages: list[dict[str, str]]) -> list[str]:
    rendered = made_of(template).render(messages)
    return [rendered.text[start:end] for start, end in rendered.assistant]


@pytest.mark.parametrize("chat", [LONG, LONG[:-1], TWICE, BEGUN], ids=["long", "ends", "twice", "begun"])
@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>\n"), (FIRST, "<end>"), (TOOLS, "<end>"), (NUMBERED, "<|im_end|>\n")],
    ids=["chatml", "first", "tools", "numbered"],
)
def test_each_turn_is_what_the_assistant_said_and_its_end(
    template: str, end: str, chat: list[dict[str, str]]
) -> None:
    answers = [(number, m["content"]) for number, m in enumerate(chat) if m["role"] == "assistant"]
    numbered = template == NUMBERED
    expected = [f"{content}{number + 1 if numbered else ''}{end}" for number, content in answers]
    assert len(expected) > WINDOW
    assert spoken(template, chat) == expected


@pytest.mark.parametrize("chat", [LONG, LONG[:-1], TWICE, BEGUN, LONG[1:3] * 2])
def test_an_end_that_only_a_whole_chat_has_is_learned_once_with_the_last_answer(
    chat: list[dict[str, str]],
) -> None:
    expected = [f"{m['content']}<|end|>\n" for m in chat if m["role"] == "assistant"]
    if chat[-1]["role"] == "assistant":
        expected[-1] += "<|endoftext|>"
    assert spoken(CLOSED, chat) == expected
    whole = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in chat) + "<|endoftext|>"
    assert made_of(CLOSED).render(chat).text == whole


def test_a_prompt_behind_an_answer_takes_the_place_of_the_end_of_the_chat() -> None:
    for chat in (talk("user", "assistant", "user"), talk("user", "assistant", "user", "assistant")):
        asked = made_of(CLOSED).render(chat, asks=True)
        assert asked.text.endswith("<|end|>\n<|assistant|>\n")
        answers = [asked.text[slice(*span)] for span in asked.assistant]
        assert answers == [f"{m['content']}<|end|>\n" for m in chat if m["role"] == "assistant"]
    after = made_of(CLOSED).end_of_turn(talk("user"))
    assert (after.text, after.controls[0]) == ("<|end|>\n<|endoftext|>", (0, 7))


def test_an_end_of_the_chat_that_is_no_control_token_cannot_be_told_from_the_prompt() -> None:
    with pytest.raises(RefusedError, match="cannot be told apart"):
        spoken(CLOSED.replace("eos_token", "'<|closed|>'"), talk("user", "assistant", "user"))


@pytest.mark.parametrize("template", [LAST_HAS_SYSTEM, THINKING], ids=["system", "thinking"])
def test_words_that_only_the_last_message_has_are_no_end_of_the_chat(template: str) -> None:
    with pytest.raises(RefusedError, match="cannot be told apart; mark them in the template"):
        spoken(template, talk("system", "user", "assistant", "user", "assistant"))
    if template == LAST_HAS_SYSTEM:  # without those words it is as any other
        answers = ["a1<|endoftext|>", "a3<|endoftext|>"]
        assert spoken(template, talk("user", "assistant", "user", "assistant")) == answers


@pytest.mark.parametrize(
    "template", [CHATML, FIRST, TOOLS, CLOSED], ids=["chatml", "first", "tools", "closed"]
)
def test_the_work_grows_with_the_number_of_turns_and_not_with_its_square(template: str) -> None:
    made = made_of(template)
    rendered = 0

    def render(messages: Sequence[Message], asks: bool) -> str:
        nonlocal rendered
        rendered += len(messages)
        return made._output(messages, asks=asks)

    work = []
    for chat in (LONG, [*LONG, *LONG[2:], *LONG[2:], *LONG[2:]]):
        output, rendered = made.render(chat).text, 0
        find_turns(chat, output, render, made.ending)
        work.append(rendered / len(chat))
    assert work[1] < 1.2 * work[0]


def test_a_chat_that_the_assistant_begins_is_learned_from_its_first_word() -> None:
    for template, end in ((CHATML, "<|im_end|>\n"), (FIRST, "<end>"), (TOOLS, "<end>")):
        assert spoken(template, talk("assistant")) == [f"a0{end}"]
        assert spoken(template, talk("assistant", "user", "assistant")) == [f"a0{end}", f"a2{end}"]


@pytest.mark.parametrize("chat", [talk("user", "assistant", "user"), LONG], ids=["short", "long"])
def test_a_template_that_changes_earlier_turns_cannot_be_masked(chat: list[dict[str, str]]) -> None:
    with pytest.raises(
        RefusedError, match=r"cannot be told apart; mark them in the template by \{% generation"
    ):
        spoken(FORGETFUL, chat)


@pytest.mark.parametrize("chat", [talk("user", "assistant", "user"), LONG, talk("assistant")])
def test_a_prompt_that_the_answer_does_not_follow_cannot_be_masked(chat: list[dict[str, str]]) -> None:
    with pytest.raises(RefusedError, match="does not begin with its prompt"):
        spoken(CHATML.replace("assistant\n'", "assistant\nSure: '"), chat)


def test_what_asks_for_an_answer_has_the_turns_before_it() -> None:
    chat = ChatTemplate(CHATML, ["<|im_start|>", "<|im_end|>"])
    asked = chat.render(talk("user", "assistant", "user"), asks=True)
    assert asked.text.endswith("<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\n")
    assert [asked.text[slice(*span)] for span in asked.assistant] == ["a1<|im_end|>\n"]
    assert len(asked.controls) == 7
    after = chat.end_of_turn(talk("user"))
    assert (after.text, after.controls) == ("<|im_end|>\n", [(0, 10)])


def test_the_example_of_the_module() -> None:
    letters = "{% for m in messages %}{{ m['role'][0] | upper }}:{{ m['content'] }}.{% endfor %}"
    template = ChatTemplate(letters + "{% if add_generation_prompt %}A:{% endif %}")
    said = zip(["user", "assistant"] * 2, ["hi", "yo", "ok", "go"])
    rendered = template.render([{"role": role, "content": content} for role, content in said])
    assert (rendered.text, rendered.assistant) == ("U:hi.A:yo.U:ok.A:go.", [(7, 10), (17, 20)])


@pytest.mark.parametrize("needed", [False, True])
def test_what_ends_a_chat_is_found_also_where_the_template_needs_the_systems_words(needed: bool) -> None:
    refused = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    assert made_of(refused * needed + CLOSED).ending == "<|endoftext|>"
    assert made_of(refused * needed + CHATML).ending == ""
