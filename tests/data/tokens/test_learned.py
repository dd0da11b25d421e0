"""What is learned of a record: masks, ends, roles."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.data.sources.records import Chat, Ids, PromptCompletion, Skipped, Text
from llmkit.data.tokens.encode import NO_TARGETS, RecordEncoder
from tests.data.tokens.test_encode import BYTES, EACH, FAST, SPED_UP, one
from tests.data.tokens.tokenizers_for_tests import END, byte_level, tokenizer, with_template


def test_ids_that_are_not_learned_are_context() -> None:
    given = np.array([104, 105, 256, 106, 256], dtype=np.int64)
    for learned, end in (
        ([False, True, False, True, True], True),
        ([True, False, False, False, False], False),
    ):
        encoded = one(BYTES, Ids(given, np.array(learned)))
        assert encoded.tokens.tolist() == given[:-1].tolist()
        assert encoded.targets is not None
        assert (encoded.targets.tolist(), encoded.end_is_target) == (learned[:-1], end)
        assert encoded.text_bytes == sum(learned[k] for k in (0, 1, 3))
    doubled = np.append(given, 256)
    for ids, learned in ((given, [False] * 5), (doubled, [False] * 5 + [True])):  # one end is enough
        [nothing] = BYTES.encode([Ids(ids, np.array(learned))])
        assert isinstance(nothing, Skipped) and nothing.reason == NO_TARGETS


ENDING = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{{ eos_token }}\n{% endfor %}"


def test_a_record_has_no_end_of_text_at_its_ends_as_one_stands_there_already() -> None:
    reading = tokenizer(byte_level(), control_tokens_in_text=True, named_tokens={"bos_token": END})
    reads = RecordEncoder(with_template(reading, ENDING))
    end, a = reading.end_of_text_id, int(reading.encode("a")[0])
    for text in ("a", f"a{END}", f"{END}a", f"{END}{END}a{END}{END}"):
        assert (one(reads, Text(text)).tokens.tolist(), one(reads, Text(text)).text_bytes) == ([a], 1)
        pair = one(reads, PromptCompletion(text, text))
        assert end not in (pair.tokens[0], pair.tokens[-1])
        assert pair.text_bytes == 1
    separate = RecordEncoder(tokenizer(byte_level(), named_tokens={"bos_token": END}, chat_template=ENDING))
    chat = Chat(({"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}))
    for encoder in (reads, separate):
        encoded = one(encoder, chat)
        assert encoded.tokens.tolist() == [a, end, *encoder.tokenizer.encode("\n"), end, a]
        assert encoded.targets is not None
        assert (encoded.targets.tolist()[-2:], encoded.end_is_target) == ([True, True], True)


def test_it_is_known_whether_a_template_ends_documents_between_turns() -> None:
    def splits(template: str) -> bool:
        return RecordEncoder(with_template(SPED_UP, template)).splits_chats

    assert splits(ENDING)
    assert not FAST.splits_chats
    assert not splits(ENDING.replace("eos_token", "eos_token if loop.last"))
    assert not splits("{{ raise_exception('never') }}")


def test_an_end_that_the_template_does_not_mark_is_not_learned() -> None:
    marked = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}</s>\n{% endfor %}"
    chat = Chat(({"role": "assistant", "content": "a"},))
    encoded = one(RecordEncoder(with_template(SPED_UP, marked)), chat)
    assert (encoded.tokens.size, encoded.end_is_target) == (1, False)


TALK = tuple(
    {"role": role, "content": content}
    for role, content in (("user", "a"), ("assistant", "wrong"), ("user", "b"), ("assistant", "right"))
)


@EACH
def test_a_message_that_is_not_to_be_learned_stays_as_context(encoder: RecordEncoder) -> None:
    whole, part = one(encoder, Chat(TALK)), one(encoder, Chat(TALK, frozenset({1})))
    assert part.tokens.tolist() == whole.tokens.tolist()
    assert whole.targets is not None and part.targets is not None
    assert encoder.tokenizer.decode(part.tokens[part.targets]).startswith("right")
    assert part.targets.sum() < whole.targets.sum()
    assert (whole.text_bytes, part.text_bytes) == (10, 5)
    [nothing] = encoder.encode([Chat(TALK, frozenset({1, 3}))])
    assert isinstance(nothing, Skipped) and nothing.reason == NO_TARGETS


def test_a_chat_in_which_the_assistant_says_nothing_is_left_out() -> None:
    silent = tuple(
        message | {"content": " "} if message["role"] == "assistant" else message for message in TALK
    )
    half = (*TALK[:3], silent[3])
    found = FAST.encode([Chat(silent), Chat(half), Chat(half, frozenset({1}))])
    assert [isinstance(one, Skipped) and one.reason == NO_TARGETS for one in found] == [True, False, True]


def test_masks_need_a_template_that_marks_each_message() -> None:
    marked = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )
    encoded = one(RecordEncoder(with_template(SPED_UP, marked)), Chat(TALK, frozenset({1})))
    assert SPED_UP.decode(encoded.tokens[encoded.targets]) == "right"
    last = marked.replace("'assistant'", "'assistant' and loop.last")
    assert one(RecordEncoder(with_template(SPED_UP, last)), Chat(TALK)).text_bytes == 5
    [found] = RecordEncoder(with_template(SPED_UP, last)).encode([Chat(TALK, frozenset({1}))])
    assert isinstance(found, Skipped)
    assert "it marks 1 parts of 2 messages" in found.detail


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("human", "gpt"), "without a message of the role assistant (rename the role gpt to it)"),
        (("user", "model"), "without a message of the role assistant (rename the role model to it)"),
        (("user", "tool"), "without a message of the role assistant"),
    ],
)
def test_a_chat_without_the_assistant_says_which_roles_it_has(roles: tuple[str, str], reason: str) -> None:
    [found] = BYTES.encode([Chat(tuple({"role": role, "content": "x"} for role in roles))])
    assert isinstance(found, Skipped)
    assert found.reason == reason
    assert ", ".join(sorted(roles)) in found.detail
