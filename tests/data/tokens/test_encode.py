from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from llmkit.data.sources.records import EMPTY, Chat, Ids, LeftOut, Pair, Record, Text
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.encode import NO_TARGETS, REFUSED, Encoded, RecordEncoder, text_of
from llmkit.data.tokens.make_tokenizer import bytes_tokenizer
from llmkit.errors import UserError
from tests.data.tokens.tokenizers_for_tests import byte_level, sentencepiece, tokenizer, word_pieces

BYTES = RecordEncoder(bytes_tokenizer("<end>"))
SPED_UP = tokenizer(byte_level())
SPED_UP.speed_up()
FAST = RecordEncoder(SPED_UP)
SLOW = RecordEncoder(tokenizer(byte_level()))
SLOW.tokenizer._encoded = 1 << 60
PIECES = RecordEncoder(tokenizer(sentencepiece()))
WORDS = RecordEncoder(tokenizer(word_pieces()))
EACH = pytest.mark.parametrize(
    "encoder", [BYTES, FAST, SLOW, PIECES], ids=["bytes", "fast", "slow", "pieces"]
)
CHAT = Chat(({"role": "user", "content": "hi"}, {"role": "assistant", "content": "the fox </s>"}))


def ids(*numbers: int) -> Ids:
    return Ids(np.array(numbers, dtype=np.int64))


def one(encoder: RecordEncoder, record: Record) -> Encoded:
    [encoded] = encoder.encode([record])
    assert isinstance(encoded, Encoded), encoded
    return encoded


@EACH
def test_every_token_of_a_text_is_a_target(encoder: RecordEncoder) -> None:
    encoded = one(encoder, Text("the caf\u00e9"))
    assert encoded.tokens.tolist() == encoder.tokenizer.encode("the caf\u00e9").tolist()
    assert encoded.tokens.dtype == np.int32
    assert (encoded.targets, encoded.text_bytes, encoded.end_is_target) == (None, 9, True)


@EACH
@given(prompt=st.text(max_size=20), completion=st.text(min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_a_pair_is_one_text_and_its_completion_is_learned(
    encoder: RecordEncoder, prompt: str, completion: str
) -> None:
    [encoded] = encoder.encode([Pair(prompt, completion)])
    text = prompt + completion
    if isinstance(encoded, LeftOut):
        assert encoded.reason == NO_TARGETS
        return
    assert encoded.tokens.tolist() == encoder.tokenizer.encode(text).tolist()
    assert encoded.text_bytes == len(completion.encode())
    assert encoded.targets is not None
    assert encoded.targets.dtype == bool
    assert encoded.end_is_target == encoded.targets[-1] == True  # noqa: E712
    if encoder is not PIECES:  # whose tokens are no bytes of the text
        lengths = [
            encoder.tokenizer.count_bytes(encoded.tokens[i : i + 1]) for i in range(encoded.tokens.size)
        ]
        expected = np.cumsum(lengths) > len(prompt.encode())
        assert encoded.targets.tolist() == expected.tolist()


def test_the_token_that_straddles_prompt_and_completion_is_learned() -> None:
    assert FAST.tokenizer.encode(" it").size == 1
    for encoder in (FAST, SLOW):
        assert one(encoder, Pair("x i", "t")).targets.tolist() == [False, True]  # type: ignore[union-attr]


def test_white_space_is_learned_too_where_the_file_would_leave_it_out_of_the_places() -> None:
    trimming = byte_level()
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    made = tokenizer(trimming)
    made._encoded = 1 << 60
    for encoder in (RecordEncoder(made), FAST):
        encoded = one(encoder, Pair("the", " \n "))
        assert encoder.tokenizer.decode(encoded.tokens[encoded.targets]) == " \n "


def test_a_completion_that_leaves_no_token_is_left_out() -> None:
    assert WORDS.encode([Pair("the fox", "  ")])[0] == LeftOut(
        NO_TARGETS, "no token of the record is to be learned"
    )


def test_a_text_that_leaves_no_token_is_left_out() -> None:
    assert WORDS.encode([Text(" \n")])[0].reason == EMPTY  # type: ignore[union-attr]


def test_ids_are_taken_as_they_are() -> None:
    encoded = one(BYTES, ids(104, 105, 256))
    assert (encoded.tokens.tolist(), encoded.targets, encoded.text_bytes) == ([104, 105, 256], None, 7)
    assert encoded.tokens.dtype == np.int32
    assert one(PIECES, Ids(PIECES.tokenizer.encode("the fox").astype(np.int64))).text_bytes == 7


@pytest.mark.parametrize("number", [257, -1, 1 << 40])
def test_ids_beyond_the_vocabulary_are_refused_with_their_place(number: int) -> None:
    message = f"file.jsonl:3: holds the token id {number}, but the ids of data.tokenizer go from 0 to 256"
    with pytest.raises(UserError, match=message):
        BYTES.encode([Text("a"), ids(0, number)], place=lambda i: f"file.jsonl:{i + 2}")
    with pytest.raises(UserError, match="record 0: "):
        BYTES.encode([ids(number)])


@EACH
@pytest.mark.parametrize("threads", [False, True])
def test_records_of_all_kinds_come_back_in_order(encoder: RecordEncoder, threads: bool) -> None:
    records = [Text("one"), CHAT, ids(1, 2), Text("two"), Chat(()), Pair("a", "b"), Text("three")]
    together = encoder.encode(records, threads)
    for record, got in zip(records, together, strict=True):
        [alone] = encoder.encode([record])
        assert type(alone) is type(got)
        assert all(np.array_equal(a, b) for a, b in zip(alone, got, strict=True))  # type: ignore[call-overload]
    assert isinstance(together[4], LeftOut)


def test_nothing_gives_nothing() -> None:
    assert FAST.encode([]) == []


@EACH
def test_it_travels_to_another_process(encoder: RecordEncoder) -> None:
    travelled = pickle.loads(pickle.dumps(encoder))
    assert travelled.key == encoder.key
    for record in (CHAT, Text("the fox </s>")):
        assert one(travelled, record).tokens.tolist() == one(encoder, record).tokens.tolist()


def test_the_key_tells_encoders_apart() -> None:
    made: list[dict[str, Any]] = [
        {},
        {"chat_template": "a"},
        {"control_tokens_in_text": True},
        {"named_tokens": {}},
    ]
    encoders = [RecordEncoder(tokenizer(byte_level(), **options)) for options in made]
    assert len({encoder.key for encoder in [*encoders, BYTES]}) == 5
    assert encoders[0].key == FAST.key
    assert RecordEncoder(SPED_UP, "a").key == encoders[1].key


def test_the_template_given_comes_before_the_tokenizers_and_that_before_chatml() -> None:
    own = tokenizer(byte_level(), chat_template="own")
    assert RecordEncoder(own, "given").chat_template == "given"
    assert RecordEncoder(own).chat_template == "own"
    assert FAST.chat_template == CHATML


def test_a_refused_chat_says_why() -> None:
    refusing = RecordEncoder(SPED_UP, "{{ raise_exception('no system here') }}")
    reason = "the chat template refuses the chat: TemplateError: no system here"
    assert refusing.encode([CHAT]) == [LeftOut(REFUSED, reason)]


def test_words_to_train_a_tokenizer_on() -> None:
    assert [text_of(record) for record in (Text("a"), CHAT, Pair("b ", "c"), ids(1))] == [
        "a", "hi\nthe fox </s>", "b c", "",
    ]  # fmt: skip
