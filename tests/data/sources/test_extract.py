from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from llmkit.config.schema import Source
from llmkit.data.sources.extract import Extracted, Extractor
from llmkit.data.sources.records import (
    SPELLED_END,
    Chat,
    Ids,
    Preference,
    PromptCompletion,
    Skipped,
    Text,
    skipped_summary,
)


def from_json(content: Any, /, repair: bool = False, **fields: Any) -> Extracted:
    line = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Extractor(Source(type="jsonl", path="x", **fields), repair).from_json(line)


def left_out(content: Any, /, **fields: Any) -> tuple[str, str]:
    found = from_json(content, **fields)[0]
    assert isinstance(found, Skipped), found
    return found


BAD_LINES: list[tuple[bytes, str, str]] = [
    (b'{"text": "\xff"}', "not UTF-8", "byte 10 is no UTF-8"),
    (b'{"text": "\\ud800"}', "not UTF-8", "field 'text' holds a lone surrogate"),
    (b'{"text": null}', "no string", "field 'text' is null, not a string"),
    (b'{"text": 5}', "no string", "field 'text' is 5, not a string"),
    (b'{"text": ["x"]}', "no string", "field 'text' is [\"x\"], not a string"),
    (b'{"body": "x"}', "without the field", "the record has no field 'text'"),
    (b'{"text": "x"', "broken JSON", "broken JSON (Expecting ',' delimiter"),
    (b"[" * 100_000, "broken JSON", "broken JSON"),
    (b'{"text": "x"} {"text": "y"}', "broken JSON", "Extra data"),
    (b'["x"]', "no JSON object", "the line holds '[\"x\"]', not a JSON object"),
    (b"", "empty", "the line is empty"),
    (b" \r", "empty", "the line is empty"),
    (b'{"text": " \\n"}', "empty", "there is no text"),
]


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES)
def test_a_bad_line_says_what_is_wrong_with_it(line: bytes, reason: str, detail: str) -> None:
    found = left_out(line)
    assert found[0] == reason
    assert detail in found[1]


@pytest.mark.parametrize(
    "line", [b'{"text": "t\\nw\\ud83d\\ude00"}\r', b'\xef\xbb\xbf{"text": "t\\nw\xf0\x9f\x98\x80"}']
)
def test_a_line_is_a_record(line: bytes) -> None:
    assert from_json(line) == (Text("t\nw\U0001f600"), False)


def test_another_field_may_hold_the_text() -> None:
    assert from_json({"body": "x"}, text_field="body")[0] == Text("x")


@pytest.mark.parametrize("line", [b'{"text": "x\xff"}', b'{"text": "x\\udfff"}'])
def test_what_is_no_utf8_can_be_repaired(line: bytes) -> None:
    assert from_json(line, repair=True) == (Text("x\ufffd"), True)


def test_what_is_repaired_does_not_rub_off_on_the_next_record() -> None:
    extractor = Extractor(Source(type="jsonl", path="x"), repair=True)
    assert [extractor.from_json(line)[1] for line in (b'{"text": "\xff"}', b'{"text": "x"}')] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\xef\xbb\xbfone\r\n", (Text("one\r\n"), False)),
        (b" \n", (Skipped("empty", "there is no text"), False)),
        (b"", (Skipped("empty", "there is no text"), False)),
        (b"caf\xe9!", (Skipped("not UTF-8", "byte 3 is no UTF-8"), False)),
    ],
)
def test_a_document_is_text(content: bytes, found: tuple[Any, bool]) -> None:
    assert Extractor(Source(type="text", path="x"), repair=False).from_text(content) == found


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_called_so_and_not_repaired(encoding: str, repair: bool) -> None:
    """Whether in a text or in the lines of a file that newlines, as bytes, cut."""
    extractor = Extractor(Source(type="jsonl", path="x"), repair)
    packed = "".join(f'{{"text": "the letter \u00e9 {i}"}}\n' for i in range(3)).encode(encoding)
    for part in packed.split(b"\n")[:3]:
        record = extractor.from_json(part)[0]
        assert isinstance(record, Skipped) and record.reason == "not UTF-8"
        assert record.detail.startswith("it is UTF-16, ") and "iconv" in record.detail
    assert extractor.from_text(packed)[0] == record
    assert from_json({"text": "a \0 that is meant"}, repair=repair)[0] == Text("a \0 that is meant")


@pytest.mark.parametrize("digits", [5000, 20000])
def test_a_number_that_python_cannot_hold_breaks_no_record(digits: int) -> None:
    number = "-" + "9" * digits
    assert from_json(f'{{"text": "x", "n": {number}}}'.encode())[0] == Text("x")
    assert left_out(f'{{"text": {number}}}'.encode()) == (
        "no string", "field 'text' is -Infinity, not a string"
    )  # fmt: skip
    ids = f'{{"input_ids": [1, {number}]}}'.encode()
    assert left_out(ids, record="ids")[0] == "no list of token ids"


def test_a_document_can_be_repaired() -> None:
    extractor = Extractor(Source(type="text", path="x"), repair=True)
    assert extractor.from_text(b"caf\xe9!") == (Text("caf\ufffd!"), True)


def test_a_chat_is_messages() -> None:
    messages = [{"role": "user", "content": "hi", "name": "Ann"}, {"role": "assistant", "content": "ho"}]
    expected = Chat(({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}))
    assert from_json({"messages": messages}, record="chat")[0] == expected
    assert from_json({"turns": messages}, record="chat", messages_field="turns")[0] == expected
    for none in (None, []):
        without = [message | {"tool_calls": none} for message in messages]
        assert from_json({"messages": without}, record="chat")[0] == expected


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        ("hi", "no list of {role, content}", "field 'messages' is \"hi\", not a list of messages"),
        (["hi"], "no list of {role, content}", 'messages[0] is "hi", not {role, content}'),
        (
            [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}],
            "no list of {role, content}",
            "messages[1] has the fields from, value, not role and content; rename from to role and value to",
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}],
            "chat with tool calls",
            "messages[0] has tool_calls, of which no tokens are made",
        ),
        (
            [{"role": "assistant", "content": None, "function_call": {"name": "f"}}],
            "chat with tool calls",
            "messages[0] has function_call, of which no tokens are made",
        ),
        ([{"role": "tool_user", "tool_calls": [{}]}], "chat with tool calls", "messages[0] has tool_calls"),
        ([{"role": "user", "content": None}], "no string", "messages[0].content is null, not a string"),
        ([{"role": "user", "content": [{"type": "text"}]}], "no string", "messages[0].content is [{"),
        ([], "empty", "no message has any text"),
        ([{"role": "user", "content": " "}], "empty", "no message has any text"),
    ],
)
def test_what_is_no_chat_says_why(messages: Any, reason: str, detail: str) -> None:
    found = left_out({"messages": messages}, record="chat")
    assert found[0] == reason
    assert detail in found[1]


def masked(*values: Any, key: str = "weight") -> Any:
    answer = {"role": "assistant", "content": "x"}
    return {"messages": [answer | ({} if value == "-" else {key: value}) for value in values]}


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
def test_a_message_may_say_that_it_is_not_learned(key: str) -> None:
    chat = from_json(masked(0, 1, False, True, 0.0, 1.0, None, "-", key=key), record="chat")[0]
    assert isinstance(chat, Chat)
    assert chat.context == {0, 2, 4}
    asked = [{"role": "user", "content": "x", key: 0}, {"role": "assistant", "content": "x"}]
    assert from_json({"messages": asked}, record="chat")[0] == Chat(
        ({"role": "user", "content": "x"}, {"role": "assistant", "content": "x"})
    )


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "false", [], {"a": 1}])
def test_other_masks_leave_the_chat_out(value: Any) -> None:
    reason, detail = left_out(masked(1, value), record="chat")
    assert reason == "chat with a mask that is not known"
    assert detail.startswith(f"messages[1].weight is {json.dumps(value)}: only 0 and 1")


def test_masks_that_cannot_be_heeded_leave_the_chat_out() -> None:
    answer = {"role": "assistant", "content": "x"}
    for message, reason in (
        (answer | {"weight": 1, "train": False}, "chat with a mask that is not known"),
        (answer | {"train_detail": [{"begin_offset": 0, "end_offset": 0, "train": False}]},
         "chat with a mask that is not known"),
        ({"role": "user", "content": "x", "train": True},
         "chat with a message to learn that is not the assistant's"),
    ):  # fmt: skip
        assert left_out({"messages": [message, answer]}, record="chat")[0] == reason


def test_a_pair_is_a_prompt_and_its_completion() -> None:
    pair = {"q": "2+2?", "a": " 4"}
    fields = {"record": "prompt_completion", "prompt_field": "q", "completion_field": "a"}
    assert from_json(pair, **fields)[0] == PromptCompletion("2+2?", " 4")
    assert from_json(pair | {"q": ""}, **fields)[0] == PromptCompletion("", " 4")
    assert left_out(pair | {"a": " "}, **fields) == ("empty", "the completion is empty")
    assert left_out(pair | {"q": None}, **fields) == ("no string", "field 'q' is null, not a string")
    assert left_out({"q": "x"}, **fields) == (
        "without the field", "the record has no field 'a'; it has 'q'"
    )  # fmt: skip


def test_ids_are_whole_numbers() -> None:
    found = from_json({"input_ids": [5, 0, 2**40]}, record="ids")[0]
    assert isinstance(found, Ids)
    assert found.ids.dtype == np.int64
    assert found.ids.tolist() == [5, 0, 2**40]


@pytest.mark.parametrize("labels", [[5, 0, 7], None, 3, "5"])
def test_labels_that_repeat_the_ids_or_are_no_list_mask_nothing(labels: Any) -> None:
    found = from_json({"input_ids": [5, 0, 7], "labels": labels}, record="ids")[0]
    assert isinstance(found, Ids) and found.learned is None


def test_labels_say_which_ids_are_learned() -> None:
    found = from_json({"input_ids": [5, 0, 7], "labels": [-100, 0, -100]}, record="ids")[0]
    assert isinstance(found, Ids) and found.learned is not None
    assert found.learned.tolist() == [False, True, False]
    for labels, reason in (
        ([0, 7, -100], "ids with labels or masks that do not fit"),
        ([-100, 0], "ids with labels or masks that do not fit"),
        ([5, 0, "7"], "no list of token ids"),
    ):
        assert left_out({"input_ids": [5, 0, 7], "labels": labels}, record="ids")[0] == reason


def test_masks_beside_ids_are_heeded_together_and_padding_is_taken_away() -> None:
    record = {
        "input_ids": [5, 6, 7, 8, 0, 0],
        "labels": [-100, 6, 7, 8, -100, -100],
        "assistant_masks": [True, True, True, False, True, True],
        "completion_mask": [1, 1, 0, 1, 0, 0],
        "attention_mask": [1, 1, 1, 1, 0, 0],
    }
    found = from_json(record, record="ids")[0]
    assert isinstance(found, Ids) and found.learned is not None
    assert (found.ids.tolist(), found.learned.tolist()) == ([5, 6, 7, 8], [False, True, False, False])
    padded = from_json({key: record[key] for key in ("input_ids", "attention_mask")}, record="ids")[0]
    assert isinstance(padded, Ids)
    assert (padded.ids.tolist(), padded.learned) == ([5, 6, 7, 8], None)
    assert left_out({"input_ids": [1], "attention_mask": [0]}, record="ids")[0] == "empty"


@pytest.mark.parametrize(
    "mask", [[1], [1, 2], [1, None], [1, "1"], [1, [1]], [1, 2**70], [0.5, 1], "01", 1, 0.0, False, {}]
)
@pytest.mark.parametrize("name", ["attention_mask", "completion_mask", "assistant_masks", "loss_mask"])
def test_masks_that_do_not_fit_leave_the_ids_out(name: str, mask: Any) -> None:
    reason, detail = left_out({"input_ids": [5, 6], name: mask}, record="ids")
    assert reason == "ids with labels or masks that do not fit"
    assert detail == f"field {name!r} is not a list of as many 0 and 1 as there are ids"


@pytest.mark.parametrize("ids", [None, 5, "5", [1.0], [True], [[1]], [None], [2**63]])
def test_what_are_no_ids_is_left_out(ids: Any) -> None:
    assert left_out({"input_ids": ids}, record="ids")[0] == "no list of token ids"


def test_no_ids_at_all_are_empty() -> None:
    assert left_out({"input_ids": []}, record="ids")[0] == "empty"


def test_what_is_left_out_is_told_in_one_line() -> None:
    counts = Counter({"not UTF-8": 2, "empty": 3, "mended with U+FFFD": 4})
    assert skipped_summary(counts) == "5 documents left out: 3 empty, 2 not UTF-8; 4 mended with U+FFFD"
    kept = Counter({SPELLED_END: 2, "mended with U+FFFD": 4})
    assert skipped_summary(kept) == f"4 mended with U+FFFD; 2 {SPELLED_END}"
    assert skipped_summary(Counter({"empty": 1})) == "1 document left out: 1 empty"
    assert skipped_summary(Counter()) == ""


ASK, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "y"), ("assistant", "n"))
)
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def answers(prompt: str) -> Preference:
    return Preference(PromptCompletion(prompt, "y"), PromptCompletion(prompt, "n"))


PREFERENCES: list[tuple[dict[str, Any], Any]] = [
    ({"prompt": "q", "chosen": "y", "rejected": "n"}, answers("q")),
    ({"prompt": "", "chosen": "y", "rejected": "n"}, answers("")),
    ({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}, Preference(Chat((ASK, YES)), Chat((ASK, NO)))),
    ({"prompt": [ASK], "chosen": "y", "rejected": "n"}, Preference(Chat((ASK, YES)), Chat((ASK, NO)))),
    ({"prompt": "q", "chosen": [YES], "rejected": [NO]}, Preference(Chat((ASK, YES)), Chat((ASK, NO)))),
    (  # as in UltraFeedback, where the prompt stands in both chats, too
        {"prompt": "q", "chosen": [ASK, YES], "rejected": [ASK, NO]},
        Preference(Chat((ASK, YES)), Chat((ASK, NO))),
    ),
    (
        {"chosen": [*EARLIER, ASK, YES], "rejected": [*EARLIER, ASK, NO]},
        Preference(
            Chat((*EARLIER, ASK, YES), frozenset({1})),  # type: ignore[arg-type]
            Chat((*EARLIER, ASK, NO), frozenset({1})),  # type: ignore[arg-type]
        ),
    ),
    (
        {"prompt": [*EARLIER, ASK], "chosen": [YES | {"weight": 0}, ASK, NO], "rejected": [NO]},
        Preference(
            Chat((*EARLIER, ASK, YES, ASK, NO), frozenset({1, 3})),  # type: ignore[arg-type]
            Chat((*EARLIER, ASK, NO), frozenset({1})),  # type: ignore[arg-type]
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), PREFERENCES)
def test_a_preference_is_two_answers_to_a_prompt(content: dict[str, Any], expected: Preference) -> None:
    assert from_json(content, record="preference")[0] == expected


BAD_PREFERENCES: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "q", "chosen": "y"}, "without the field", "the record has no field 'rejected'"),
    ({"chosen": "y", "rejected": "n"}, "answers without a prompt", "no field 'prompt', the prompt of both"),
    ({"prompt": "q", "chosen": "y", "rejected": " "}, "empty", "an answer is empty"),
    ({"prompt": "q", "chosen": "y", "rejected": 5}, "no string", "field 'rejected' is 5, not a string"),
    ({"prompt": 7, "chosen": "y", "rejected": "n"}, "no string", "field 'prompt' is 7, not a string"),
    (
        {"prompt": "q", "chosen": [YES], "rejected": "n"},
        "no list of {role, content}",
        "field 'rejected' is \"n\", not a list of messages",
    ),
    (
        {"prompt": [ASK], "chosen": [YES], "rejected": [YES]},
        "with the same answer chosen and rejected",
        "are the same",
    ),
    ({"prompt": "q", "chosen": "y", "rejected": "y"}, "with the same answer chosen and rejected", "the same"),
]


@pytest.mark.parametrize(("content", "reason", "detail"), BAD_PREFERENCES)
def test_a_bad_preference_says_what_is_wrong_with_it(
    content: dict[str, Any], reason: str, detail: str
) -> None:
    found = left_out(content, record="preference")
    assert found[0] == reason and detail in found[1]
