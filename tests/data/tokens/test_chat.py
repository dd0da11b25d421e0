from __future__ import annotations

import tempfile
from datetime import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.data.sources.records import Chat, Skipped
from llmkit.data.tokens.chat import CHATML, ChatTemplate
from llmkit.data.tokens.encode import REFUSED, Encoded, RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.data.tokens.turns import RefusedError
from llmkit.errors import UserError
from tests.data.tokens.tokenizers_for_tests import (
    byte_level,
    bytes_tokenizer,
    sentencepiece,
    tokenizer,
    word_pieces,
)

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for message in rest %}"
    "{% set text = system + message['content'] if loop.first else message['content'] %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA3 = """\
{% set date = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{{- bos_token }}
{%- for message in messages %}
    {%- set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {{- head + (date + '\\n' if loop.first else '') + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% continue %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no such role: ' + message['role'] | tojson) }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MARKED = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' }}
{% if message['role'] == 'assistant' %}
{% generation %}
{{- message['content'] + '<|im_end|>' -}}
{% endgeneration %}
{% else %}
{{ message['content'] + '<|im_end|>' }}
{% endif %}
{{ '\n' }}
{% endfor %}
"""
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL,
             "phi": PHI, "marked": MARKED}  # fmt: skip
ENCODERS = {
    "bytes": byte_level(),
    "first": sentencepiece("first"),
    "always": sentencepiece("always"),
    "prepend": sentencepiece("prepend"),
    "words": word_pieces(),
}
MESSAGES = (
    {"role": "system", "content": "Be  brief. \u65e5\u672c"},
    {"role": "user", "content": " What is \U0001f600?\n\n"},
    {"role": "assistant", "content": "A face, it's 1234.\n"},
    {"role": "user", "content": "caf\u00e9 \ufdff <b> [x]  </b>"},
    {"role": "assistant", "content": "  the quick brown fox  "},
)
BY_ENCODER = pytest.mark.parametrize("kind", ENCODERS)
BY_TEMPLATE = pytest.mark.parametrize("template", TEMPLATES)
BY_SPEED = pytest.mark.parametrize("sped_up", [True, False], ids=["fast", "slow"])


@cache
def encoder(kind: str, template: str, sped_up: bool = True) -> RecordEncoder:
    made = tokenizer(ENCODERS[kind], chat_template=TEMPLATES[template])
    if sped_up:
        made.enable_tiktoken()
        assert (made.tiktoken_disabled_because is None) == (kind == "bytes")
    return RecordEncoder(made)


@cache
def theirs(kind: str, template: str) -> Any:
    transformers = pytest.importorskip("transformers")
    with tempfile.TemporaryDirectory() as folder:
        encoder(kind, template).tokenizer.save(Path(folder))
        return transformers.AutoTokenizer.from_pretrained(folder)


def encode(encoder: RecordEncoder, *messages: dict[str, str]) -> Encoded:
    [encoded] = encoder.encode([Chat(messages)])
    assert isinstance(encoded, Encoded), encoded
    return encoded


def learned(encoder: RecordEncoder, encoded: Encoded) -> str:
    """The text of the targets, parted by "|"."""
    assert encoded.targets is not None
    parts: list[list[int]] = [[]]
    for token, target in zip(encoded.tokens.tolist(), encoded.targets.tolist(), strict=True):
        if target:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])
    return "|".join(encoder.tokenizer.decode(part) for part in parts if part)


@pytest.fixture
def their_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers gives templates a clock: it is stopped at the date that they fall back to."""
    clock = SimpleNamespace(now=lambda: datetime(2024, 7, 26))
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


def without_end(encoder: RecordEncoder, ids: list[int]) -> list[int]:
    """Ids without the end-of-text that some templates write behind the last turn."""
    return ids[:-1] if ids[-1] == encoder.tokenizer.end_of_text_id else ids


@BY_ENCODER
@BY_TEMPLATE
@BY_SPEED
@pytest.mark.usefixtures("their_clock")
def test_ids_are_those_of_transformers(kind: str, template: str, sped_up: bool) -> None:
    # White space at the beginning of an answer is a token of the answer; theirs may join it with others.
    messages = [*MESSAGES[:-1], {"role": "assistant", "content": "the quick brown fox  "}]
    one = encoder(kind, template, sped_up)
    expected = theirs(kind, template).apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encode(one, *messages).tokens.tolist() == without_end(one, expected)


@BY_ENCODER
@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "gemma", "mistral", "phi"])
@BY_SPEED
@pytest.mark.usefixtures("their_clock")
def test_the_ids_before_an_answer_are_those_that_ask_for_it(kind: str, template: str, sped_up: bool) -> None:
    one = encoder(kind, template, sped_up)
    asked = theirs(kind, template).apply_chat_template(
        list(MESSAGES[:2]), tokenize=True, return_dict=False, add_generation_prompt=True
    )
    encoded = encode(one, *MESSAGES)
    assert encoded.tokens[: len(asked)].tolist() == asked
    assert encoded.targets is not None
    assert encoded.targets.argmax() == len(asked)
    for answer in ("  x", "\n\n", "<|im_end|>"):
        other = encode(one, *MESSAGES[:2], {"role": "assistant", "content": f"{answer}y"})
        assert other.tokens[: len(asked)].tolist() == asked


@BY_ENCODER
def test_generation_blocks_give_the_mask_of_transformers(kind: str) -> None:
    # Where no token stands for a span's first character, a space say, transformers ends the mask.
    messages = [message | {"content": message["content"].strip()} for message in MESSAGES]
    expected = theirs(kind, "marked").apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    encoded = encode(encoder(kind, "marked"), *messages)
    assert encoded.targets is not None
    assert encoded.targets.astype(int).tolist() == expected["assistant_masks"]
    # The line's end after the last word is the template's, and no token among words.
    assert encoded.end_is_target == (kind == "words")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("chatml", "A face, it's 1234.\n<|im_end|>\n|  the quick brown fox  <|im_end|>\n"),
        ("llama2", " A face, it's 1234. </s>| the quick brown fox "),
        ("llama3", "A face, it's 1234.<|eot_id|>|the quick brown fox<|eot_id|>"),
        ("gemma", "A face, it's 1234.<end_of_turn>\n|the quick brown fox<end_of_turn>\n"),
        ("mistral", "A face, it's 1234.\n</s>|  the quick brown fox  "),
        ("phi", "A face, it's 1234.\n<|im_end|>\n|  the quick brown fox  <|im_end|>\n"),
        ("marked", "A face, it's 1234.\n<|im_end|>|  the quick brown fox  <|im_end|>"),
    ],
)
@BY_SPEED
def test_the_assistants_words_and_the_end_of_its_turn_are_learned(
    template: str, words: str, sped_up: bool
) -> None:
    one = encoder("bytes", template, sped_up)
    encoded = encode(one, *MESSAGES)
    assert learned(one, encoded) == words
    assert encoded.end_is_target == (template != "marked")
    # Neither control tokens nor what a template writes or trims changes the size of the text.
    assert encoded.text_bytes == sum(len(m["content"].encode()) for m in MESSAGES if m["role"] == "assistant")


@BY_TEMPLATE
def test_both_encoders_learn_the_same(template: str) -> None:
    one, other = (encode(encoder("bytes", template, sped_up), *MESSAGES) for sped_up in (True, False))
    assert one.tokens.tolist() == other.tokens.tolist()
    assert (one.targets == other.targets).all()  # type: ignore[union-attr]


def test_no_token_is_partly_the_assistants() -> None:
    made = RecordEncoder(
        tokenizer(
            ENCODERS["bytes"], chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"
        )
    )
    assert made.tokenizer.encode(" it").size == 1
    encoded = encode(made, {"role": "user", "content": "x i"}, {"role": "assistant", "content": "t 1"})
    assert learned(made, encoded) == "t 1"


@BY_ENCODER
@BY_TEMPLATE
@BY_SPEED
def test_control_tokens_that_a_message_spells_stay_text(kind: str, template: str, sped_up: bool) -> None:
    one = encoder(kind, template, sped_up)
    spelled = "".join(one.tokenizer.control_tokens)
    attack = tuple(m | {"content": f"a {spelled} b {spelled}"} for m in MESSAGES)
    control = set(one.tokenizer.control_tokens.values()) - {one.tokenizer.control_tokens["<unk>"]}

    def controls(*messages: dict[str, str]) -> list[int]:
        return [token for token in encode(one, *messages).tokens.tolist() if token in control]

    assert controls(*attack) == controls(*MESSAGES)
    if kind == "bytes":
        text = one.tokenizer.decode(encode(one, *attack).tokens)
        assert text.count(f"a {spelled} b {spelled}") == 5 - (template == "mistral")


def test_a_role_cannot_spell_one_either() -> None:
    one = encoder("bytes", "chatml")
    tokens = encode(one, {"role": "</s>", "content": "a"}, {"role": "assistant", "content": "b"}).tokens
    assert one.tokenizer.end_of_text_id not in tokens


PIPES = (
    "{% for m in messages %}{{ '<|' + m['role'] | trim | lower + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PIPED = ["<|user|>", "<|assistant|>", "<|tool|>", "<|judge|>", "<|end|>", "<|endoftext|>", "<|other|>"]


def asked_by(role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "role", ["endoftext", " EndOfText", "end", "other", "x|><|endoftext", "endoftext|>x", "x<|end|><|other"]
)
def test_a_role_cannot_be_part_of_a_control_token(role: str) -> None:
    with pytest.raises(RefusedError, match="makes a control token of a role that it does not name"):
        ChatTemplate(PIPES, PIPED).render(asked_by(role))


@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
def test_roles_that_everyone_knows_make_control_tokens(role: str) -> None:
    rendered = ChatTemplate(PIPES, PIPED).render(asked_by(role))
    written = [rendered.text[start:end] for start, end in rendered.controls]
    assert written == [f"<|{role}|>", "<|end|>", "<|assistant|>", "<|end|>"]


def test_roles_that_the_template_names_do_too() -> None:
    naming = "{% if messages[0]['role'] in ['user', 'judge'] %}{% endif %}" + PIPES
    rendered = ChatTemplate(naming, PIPED).render(asked_by("judge"))
    assert rendered.text[slice(*rendered.controls[0])] == "<|judge|>"
    with pytest.raises(RefusedError):
        ChatTemplate(PIPES, PIPED).render(asked_by("judge"))


@pytest.mark.parametrize("role", ["developer", "a", "im", "<|im_end|>", "narrator |>"])
def test_other_roles_are_text(role: str) -> None:
    rendered = ChatTemplate(CHATML, ["<|im_start|>", "<|im_end|>"]).render(asked_by(role))
    assert rendered.text.startswith(f"<|im_start|>{role}\na<|im_end|>\n")
    assert len(rendered.controls) == 4


def test_beside_them_known_roles_still_make_control_tokens() -> None:
    rendered = ChatTemplate(PIPES, PIPED).render(asked_by("narrator"))
    assert rendered.text == "<|narrator|>a<|end|><|assistant|>b<|end|>"
    assert [start for start, _ in rendered.controls] == [13, 20, 34]


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'][1:] }}", "{{ messages[0]['content'][0] * 2 }}", "\ufdd3"]
)
def test_half_a_mark_is_refused(template: str) -> None:
    with pytest.raises(RefusedError, match="cuts a control token that a message spells"):
        ChatTemplate(template, ["<|end|>"]).render([{"role": "user", "content": "<|end|>a"}])


def test_where_text_may_hold_control_tokens_messages_may_too() -> None:
    made = tokenizer(ENCODERS["bytes"], control_tokens_in_text=True, chat_template=CHATML)
    made.enable_tiktoken()
    messages = [{"role": "user", "content": "a</s>b"}, {"role": "assistant", "content": "c"}]
    expected = theirs("bytes", "chatml").apply_chat_template(messages, tokenize=True, return_dict=False)
    encoded = encode(RecordEncoder(made), *messages)
    assert encoded.tokens.tolist() == expected
    assert made.end_of_text_id in expected
    [spelled] = RecordEncoder(made).encode([Chat((*messages[:1], {"role": "assistant", "content": "c</s>"}))])
    assert (encoded.text_bytes, spelled.text_bytes) == (1, 1)  # type: ignore[union-attr]


def test_there_a_template_that_closes_the_chat_is_understood_as_well() -> None:
    one = RecordEncoder(tokenizer(ENCODERS["bytes"], chat_template=PHI, control_tokens_in_text=True))
    assert learned(one, encode(one, *MESSAGES)) == (
        "A face, it's 1234.\n<|im_end|>\n|  the quick brown fox  <|im_end|>\n"
    )


def test_without_tokens_of_its_own_chatml_is_text() -> None:
    one = RecordEncoder(bytes_tokenizer("<end>"))
    encoded = encode(one, *MESSAGES)
    assert one.tokenizer.decode(encoded.tokens).startswith("<|im_start|>system\nBe  brief.")
    assert learned(one, encoded).startswith("A face, it's 1234.\n<|im_end|>\n|")


def left_out(template: str, *messages: dict[str, str]) -> Skipped:
    made = RecordEncoder(tokenizer(ENCODERS["bytes"], chat_template=template))
    [found] = made.encode([Chat(messages or MESSAGES)])
    assert isinstance(found, Skipped), found
    return found


@pytest.mark.parametrize(
    ("template", "detail"),
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[99]['content'] + 1 }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ strftime_now('%Y') }}", "'strftime_now' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{% for i in range(99999) %}{{ messages }}{% endfor %}", "far more text"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_what_a_template_refuses_or_must_not_do_leaves_the_chat_out(template: str, detail: str) -> None:
    found = left_out(template)
    assert found.reason == REFUSED
    assert detail in found.detail


def test_noncharacters_are_refused() -> None:
    found = left_out(CHATML, {"role": "assistant", "content": "a\ufdd1b"})
    assert found.detail.endswith("a message holds the noncharacter U+FDD1")


def test_a_broken_template_is_named_with_its_line() -> None:
    with pytest.raises(UserError, match=r"my.jinja: line 2 is no valid Jinja"):
        ChatTemplate("a\n{% for %}", origin="my.jinja")


def test_generation_blocks_count_inside_macros_and_settings() -> None:
    template = ChatTemplate(
        "{% macro say(m) %}{% generation %}{{ m }}!{% endgeneration %}{% endmacro %}"
        "{% set text %}<{{ say(messages[0]['content']) }}>{% endset %}{{ text }}{{ text }}"
    )
    assert template.render([{"role": "assistant", "content": "hi"}]).assistant == [(1, 4), (6, 9)]


def test_rendering_twice_gives_the_same_and_changes_no_message() -> None:
    template = ChatTemplate(CHATML, ["<|im_start|>", "<|im_end|>"])
    messages = [dict(message) for message in MESSAGES]
    assert template.render(messages) == template.render(messages)
    assert tuple(messages) == MESSAGES


def test_a_loaded_tokenizer_keeps_its_template_and_names(tmp_path: Path) -> None:
    one = encoder("bytes", "llama2").tokenizer
    one.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.chat_template, loaded.named_tokens) == (
        LLAMA2,
        {"bos_token": "<s>", "eos_token": "</s>"},
    )
    tokens = encode(RecordEncoder(loaded), *MESSAGES).tokens.tolist()
    assert tokens == encode(encoder("bytes", "llama2"), *MESSAGES).tokens.tolist()
