from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from xxhash import xxh64_hexdigest

from llmkit.data.sources.records import EMPTY, Chat, Ids, PromptCompletion, Record, Skipped, Text
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.encode import NO_TARGETS, REFUSED, VERSION, Encoded, RecordEncoder, text_of
from llmkit.data.tokens.tokenizer import Tokenizer
from tests.data.tokens.tokenizers_for_tests import (
    END,
    byte_level,
    bytes_tokenizer,
    sentencepiece,
    tokenizer,
    with_template,
    word_pieces,
)

BYTES = RecordEncoder(bytes_tokenizer("<end>"))
SPED_UP = tokenizer(byte_level())
SPED_UP.enable_tiktoken()
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
def test_the_prompt_of_a_pair_has_the_ids_that_it_has_alone_and_the_completion_is_learned(
    encoder: RecordEncoder, prompt: str, completion: str
) -> None:
    [encoded] = encoder.encode([PromptCompletion(prompt, completion)])
    if isinstance(encoded, Skipped):
        assert encoded.reason == NO_TARGETS
        return
    asked = encoder.tokenizer.encode(prompt)
    assert encoded.tokens[: asked.size].tolist() == asked.tolist()
    assert encoded.text_bytes == len(completion.encode())
    assert encoded.targets is not None
    assert encoded.targets.dtype == bool
    assert encoded.targets.tolist() == [False] * asked.size + [True] * (encoded.tokens.size - asked.size)
    assert encoded.end_is_target
    if encoder is not PIECES:  # whose vocabulary lacks characters
        assert encoder.tokenizer.decode(encoded.tokens) == prompt + completion


def test_a_completion_goes_on_as_text_does() -> None:
    for scheme in ("first", "always", "prepend"):
        made = RecordEncoder(tokenizer(sentencepiece(scheme)))
        for prompt, completion in (("the quick", " brown fox"), ("the qui", "ck brown"), ("the", "  fox")):
            encoded = one(made, PromptCompletion(prompt, completion))
            assert made.tokenizer.decode(encoded.tokens) == prompt + completion


def test_no_token_straddles_prompt_and_completion() -> None:
    assert FAST.tokenizer.encode(" it").size == 1
    for encoder in (FAST, SLOW):
        encoded = one(encoder, PromptCompletion("x i", "t"))
        assert encoder.tokenizer.decode(encoded.tokens[encoded.targets]) == "t"


def test_white_space_is_learned_too_where_the_file_would_leave_it_out_of_the_places() -> None:
    trimming = byte_level()
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    made = tokenizer(trimming)
    made._encoded = 1 << 60
    for encoder in (RecordEncoder(made), FAST):
        encoded = one(encoder, PromptCompletion("the", " \n "))
        assert encoder.tokenizer.decode(encoded.tokens[encoded.targets]) == " \n "


def test_a_completion_that_leaves_no_token_is_left_out() -> None:
    assert WORDS.encode([PromptCompletion("the fox", "  ")])[0] == Skipped(
        NO_TARGETS, "no token of the record is to be learned"
    )


def test_a_record_that_leaves_no_token_is_left_out() -> None:
    for record in (Text(" \n"), PromptCompletion(" ", "\n"), PromptCompletion("", "")):
        assert WORDS.encode([record]) == [Skipped(EMPTY, "the text has no tokens")]


@EACH
@pytest.mark.parametrize("code", range(0xFDD0, 0xFDF0))
def test_no_noncharacter_makes_a_control_token_of_text(encoder: RecordEncoder, code: int) -> None:
    made = encoder.tokenizer
    text = f"the {chr(code)}{made.end_of_text[1:]} fox {chr(code)}unused{chr(code)}"
    for record in (
        Text(text),
        PromptCompletion("", text),
        PromptCompletion(text[:5], text[5:]),
        PromptCompletion(text, "x"),
    ):
        tokens = one(encoder, record).tokens.tolist()
        if isinstance(record, Text):
            assert tokens == made._library.encode(text, add_special_tokens=False).ids
        assert not {*made.control_tokens.values()} - {made.control_tokens.get("<unk>")} & {*tokens}
    [chat] = encoder.encode(
        [Chat(({"role": "user", "content": "a"}, {"role": "assistant", "content": text}))]
    )
    assert isinstance(chat, Skipped)


def with_controls(*contents: str, **flags: bool) -> RecordEncoder:
    """Byte-level BPE with control tokens of its own; flags: of tokens, such as rstrip."""
    encoder = byte_level()
    encoder.add_special_tokens([AddedToken(content, special=True, **flags) for content in contents])
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    return RecordEncoder(tokenizer(encoder, chat_template=template))


ALL_FLAGS = [{"rstrip": True}, {"lstrip": True}, {"rstrip": True, "lstrip": True}, {"single_word": True}]


@pytest.mark.parametrize("flags", ALL_FLAGS, ids=str)
@pytest.mark.parametrize("sped_up", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize("space", ["", " ", "\n\n  "], ids=["none", "space", "lines"])
def test_tokens_that_take_white_space_along_are_learned_only_where_they_are_the_assistants(
    flags: dict[str, bool], sped_up: bool, space: str
) -> None:
    encoder = with_controls("<|user|>", "<|assistant|>", "<|end|>", **flags)
    if sped_up:
        encoder.tokenizer.enable_tiktoken()
        assert encoder.tokenizer.tiktoken_disabled_because is None
    words = f"{space}the fox{space}"
    chat = Chat(({"role": "user", "content": words}, {"role": "assistant", "content": words}))
    encoded = one(encoder, chat)
    spec = encoder.tokenizer.files()["tokenizer.json"].decode()
    reading = Tokenizer(spec, END, control_tokens_in_text=True)
    asked = f"<|user|>{words}<|end|><|assistant|>"
    text = f"{asked}{words}<|end|>"
    assert encoded.tokens.tolist()[: reading.encode(asked).size] == reading.encode(asked).tolist()
    if not flags.get("single_word"):  # such a token is text where a letter follows, as none does in a prompt
        assert encoded.tokens.tolist() == reading.encode(text).tolist()
    controls = encoder.tokenizer.control_tokens
    ends = [i for i, token in enumerate(encoded.tokens.tolist()) if token == controls["<|end|>"]]
    if not flags.get("single_word"):
        assert len(ends) == 2
        header = encoded.tokens.tolist().index(controls["<|assistant|>"])
        assert encoded.targets is not None
        assert not encoded.targets[: header + 1].any()
        assert encoded.targets[header + 1 :].all()
    both = one(RecordEncoder(with_template(reading, encoder.chat_template)), chat)
    assert both.tokens.tolist() == encoded.tokens.tolist()
    assert np.array_equal(both.targets, encoded.targets)  # type: ignore[arg-type]


def test_a_pair_needs_no_known_bytes() -> None:
    spec = json.loads(SPED_UP.files()["tokenizer.json"]) | {"decoder": None}
    undecoded = Tokenizer(json.dumps(spec), END)
    undecoded.enable_tiktoken()
    assert undecoded.tiktoken_disabled_because is None
    for record in (PromptCompletion("x i", "t caf\u00e9"), CHAT):
        got, expected = one(RecordEncoder(undecoded), record), one(FAST, record)
        assert got.tokens.tolist() == expected.tokens.tolist()
        assert np.array_equal(got.targets, expected.targets)  # type: ignore[arg-type]


def test_ids_are_taken_as_they_are_but_for_end_of_text_at_both_ends() -> None:
    for taken, kept in (
        ([104, 105], [104, 105]),
        ([104, 256, 105, 256], [104, 256, 105]),
        ([256, 104, 105], [104, 105]),
        ([256, 256, 104, 105, 256, 256], [104, 105]),
    ):
        encoded = one(BYTES, ids(*taken))
        assert (encoded.tokens.tolist(), encoded.targets, encoded.text_bytes) == (kept, None, 2)
    for nothing in ([256], [256, 256, 256]):
        [empty] = BYTES.encode([ids(*nothing)])
        assert isinstance(empty, Skipped)
        assert empty.reason == EMPTY
    encoded = one(BYTES, ids(104, 105))
    assert encoded.tokens.dtype == np.int32
    assert one(PIECES, Ids(PIECES.tokenizer.encode("the fox").astype(np.int64))).text_bytes == 7


@pytest.mark.parametrize("number", [257, -1, 1 << 40])
def test_ids_outside_the_vocabulary_cannot_be_used(number: int) -> None:
    text, wrong, right = BYTES.encode([Text("a"), ids(0, number), ids(0, 256, 1)])
    assert isinstance(wrong, Skipped)
    assert wrong.reason == "with token ids outside the vocabulary"
    assert wrong.detail.startswith(
        f"holds the token id {number}, but the ids of data.tokenizer go from 0 to 256"
    )
    assert isinstance(text, Encoded)
    assert isinstance(right, Encoded)


@EACH
@pytest.mark.parametrize("threads", [False, True])
def test_records_of_all_kinds_come_back_in_order(encoder: RecordEncoder, threads: bool) -> None:
    records = [Text("one"), CHAT, ids(1, 2), Text("two"), Chat(()), PromptCompletion("a", "b"), Text("three")]
    together = encoder.encode(records, threads)
    for record, got in zip(records, together, strict=True):
        [alone] = encoder.encode([record])
        assert type(alone) is type(got)
        assert all(np.array_equal(a, b) for a, b in zip(alone, got, strict=True))  # type: ignore[call-overload]
    assert isinstance(together[4], Skipped)


def test_nothing_gives_nothing() -> None:
    assert FAST.encode([]) == []


@EACH
def test_it_travels_to_another_process(encoder: RecordEncoder) -> None:
    travelled = pickle.loads(pickle.dumps(encoder))
    assert travelled.key_of("chat") == encoder.key_of("chat")
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
    assert len({encoder.key_of("chat") for encoder in [*encoders, BYTES]}) == 5
    assert encoders[0].key_of("chat") == FAST.key_of("chat")
    assert RecordEncoder(with_template(SPED_UP, "a")).key_of("chat") == encoders[1].key_of("chat")
    for kind in ("text", "ids", "prompt_completion"):  # these have no template
        assert len({encoder.key_of(kind) for encoder in [*encoders, BYTES]}) == 3
    assert FAST.key_of("text") == SPED_UP.hash


def test_the_key_of_a_template_that_closes_the_chat_is_not_that_of_when_its_chats_were_left_out() -> None:
    def old_key(one: RecordEncoder) -> str:
        parts = [f"version {VERSION}", one.tokenizer.hash, one.template_key]
        return xxh64_hexdigest("\0".join(parts).encode())

    closed = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    one = RecordEncoder(tokenizer(byte_level(), named_tokens={"eos_token": "</s>"}, chat_template=closed))
    assert one.key_of("chat") != old_key(one)
    assert FAST.key_of("chat") == old_key(FAST)


def test_chats_take_the_tokenizers_template_else_chatml() -> None:
    own = tokenizer(byte_level(), chat_template="own")
    assert RecordEncoder(own).chat_template == "own"
    assert FAST.chat_template == CHATML


def test_the_example_of_the_module() -> None:
    made = tokenizer(byte_level(), chat_template=CHATML)
    chat = Chat(({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}))
    encoded = one(RecordEncoder(made), chat)
    assert encoded.targets is not None and encoded.end_is_target
    assert made.decode(encoded.tokens) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    )
    assert made.decode(encoded.tokens[encoded.targets]) == "yo<|im_end|>\n"


def test_a_refused_chat_says_why() -> None:
    refusing = RecordEncoder(with_template(SPED_UP, "{{ raise_exception('no system here') }}"))
    reason = "the chat template refuses the chat: TemplateError: no system here"
    assert refusing.encode([CHAT]) == [Skipped(REFUSED, reason)]


def test_words_to_train_a_tokenizer_on() -> None:
    assert [text_of(record) for record in (Text("a"), CHAT, PromptCompletion("b ", "c"), ids(1))] == [
        "a", "hi\nthe fox </s>", "b c", "",
    ]  # fmt: skip
