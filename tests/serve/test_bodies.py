"""Requests: what is read, what has no effect, what is refused."""

from __future__ import annotations

import json

import pytest

from llmkit.serve.bodies import NEUTRAL, NO_EFFECT, ChatBody, CompletionBody, read_body
from llmkit.serve.errors import ApiError

COMPLETION = {"model": "m", "prompt": "a"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def read(kind, **more):
    base = COMPLETION if kind is CompletionBody else CHAT
    return read_body(kind, json.dumps(base | more).encode())


def test_null_is_the_default():
    given = {name: None for name in CompletionBody.model_fields if name not in COMPLETION}
    assert read(CompletionBody, **given) == read(CompletionBody)


@pytest.mark.parametrize("kind", [CompletionBody, ChatBody])
def test_what_has_no_effect_changes_nothing(kind):
    neutral = {name: values[0] for name, values in NEUTRAL.items()}
    found = read(kind, **neutral, **dict.fromkeys(NO_EFFECT, "anything"))
    assert found == read(kind)
    for name in NEUTRAL:
        with pytest.raises(ApiError, match=name) as error:
            read(kind, **{name: "something else"})
        assert (error.value.param, error.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_kinds_of_prompts(prompt, prompts):
    assert read(CompletionBody, prompt=prompt).prompts == prompts


def test_stops_and_alternatives():
    assert (read(CompletionBody).stops, read(CompletionBody).alternatives) == ([], None)
    assert read(CompletionBody, stop="x", logprobs=0).stops == ["x"]
    assert read(CompletionBody, logprobs=0).alternatives == 0
    assert read(ChatBody, stop=["x", "y"]).stops == ["x", "y"]
    assert read(ChatBody, top_logprobs=3).alternatives is None
    assert read(ChatBody, top_logprobs=3, logprobs=True).alternatives == 3


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        (CompletionBody, {"prompt": ["a", 1]}, "prompt"),
        (CompletionBody, {"prompt": [[]]}, "prompt"),
        (CompletionBody, {"prompt": ["a"] * 100}, "prompt"),
        (CompletionBody, {"n": 0}, "n"),
        (CompletionBody, {"n": 1.5}, "n"),
        (CompletionBody, {"stop": [""]}, "stop"),
        (CompletionBody, {"stream": "yes"}, "stream"),
        (CompletionBody, {"top_p": 0}, "top_p"),
        (CompletionBody, {"seed": 2**63}, "seed"),
        (CompletionBody, {"logprobs": True}, "logprobs"),
        (ChatBody, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (ChatBody, {"messages": [{"role": "user", "content": "a", "calls": []}]}, "messages.0.calls"),
        (ChatBody, {"prompt": "a"}, "prompt"),
    ],
)
def test_the_parameter_that_is_wrong_is_named(kind, more, param):
    with pytest.raises(ApiError) as error:
        read(kind, **more)
    assert error.value.status == 400 and error.value.param.startswith(param)
    assert error.value.message.count("\n") == 0
