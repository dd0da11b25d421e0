"""The routes, asked by OpenAI's own client and by a plain one."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from llmkit.generation.sampling import Sampling
from llmkit.generation.text import TextSession, complete, stream_batch
from llmkit.prompts import messages_prompt, text_prompt
from llmkit.serve.server import LOCAL_NAMES
from tests.limits import HANG
from tests.serve.running import CONTEXT, NAME, running

GREEDY = {"model": NAME, "temperature": 0}
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello?"}]


@pytest.fixture(scope="module")
def served():
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    with served.client() as client:
        yield client


def alone(served, prompt, tokens, **options):
    """What the model answers by itself."""
    sampling = Sampling(**{"temperature": 0.0} | options)
    return complete(stream_batch(served.model, served.tokenizer, [prompt], tokens, sampling), 1)[0]


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "llmkit"
    with pytest.raises(openai.NotFoundError, match=f"there is no model 'gpt-4' here; .* has '{NAME}'"):
        client.models.retrieve("gpt-4")


def test_a_completion_whole_and_streamed_is_what_generation_gives(served, client):
    wanted = alone(served, text_prompt(served.tokenizer, "ab"), 25)
    whole = client.completions.create(prompt="ab", max_tokens=25, **GREEDY)
    (choice,) = whole.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (wanted.text, "length", None)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (3, 25, 28)
    stream = [*client.completions.create(
        prompt="ab", max_tokens=25, stream=True, stream_options={"include_usage": True}, **GREEDY
    )]  # fmt: skip
    *parts, last = stream
    assert last.usage == whole.usage and last.choices == []
    assert "".join(part.choices[0].text for part in parts) == wanted.text and len(parts) > 5
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["length"]
    assert len({part.id for part in stream}) == 1


def test_a_chat_whole_and_streamed_is_what_generation_gives(served, client):
    wanted = alone(served, messages_prompt(served.tokenizer, MESSAGES), 20)
    whole = client.chat.completions.create(messages=MESSAGES, max_tokens=20, **GREEDY)
    (choice,) = whole.choices
    assert (choice.message.role, choice.message.content) == ("assistant", wanted.text)
    assert choice.finish_reason == wanted.end
    parts = [*client.chat.completions.create(
        messages=MESSAGES, max_completion_tokens=20, stream=True, **GREEDY
    )]  # fmt: skip
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted.text
    assert parts[-1].choices[0].finish_reason == wanted.end
    in_parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
    again = client.chat.completions.create(messages=in_parts, max_tokens=20, **GREEDY)
    assert again.choices[0].message.content == wanted.text


def test_a_reply_can_be_sent_back_as_it_is(client):
    question = {"role": "user", "content": "a"}
    message = client.chat.completions.create(messages=[question], max_tokens=4, **GREEDY).choices[0].message
    assert message.to_dict()["refusal"] is None
    further = [question, message, {"role": "user", "content": "b", "name": None}]
    assert client.chat.completions.create(messages=further, max_tokens=4, **GREEDY).choices[0].message.content


def test_an_answer_in_a_chat_may_take_the_rest_of_the_context(client):
    found = client.chat.completions.create(messages=MESSAGES[1:], **GREEDY)
    assert found.usage.total_tokens == CONTEXT and found.choices[0].finish_reason == "length"


def test_sampling_follows_the_seed_and_each_choice_has_its_own(served, client):
    prompt = text_prompt(served.tokenizer, "ab")
    asked = {"model": NAME, "prompt": "ab", "max_tokens": 12, "temperature": 1.3, "top_p": 0.9}
    found = client.completions.create(n=3, seed=5, **asked)
    texts = [choice.text for choice in sorted(found.choices, key=lambda choice: choice.index)]
    wanted = [alone(served, prompt, 12, temperature=1.3, top_p=0.9, seed=5 + number) for number in range(3)]
    assert texts == [answer.text for answer in wanted]
    assert len(set(texts)) == 3
    assert found.usage.prompt_tokens == 3
    assert found.usage.completion_tokens == sum(len(answer.tokens) for answer in wanted)
    assert len({client.completions.create(**asked).choices[0].text for _ in range(3)}) > 1
    extra = client.completions.create(seed=5, extra_body={"top_k": 1, "repetition_penalty": 1.5}, **asked)
    penalised = alone(served, prompt, 12, temperature=1.0, top_k=1, repetition_penalty=1.5)
    assert extra.choices[0].text == penalised.text


def test_prompts_of_text_and_ids_together_and_echo(served, client):
    texts = ["ab", "xyz"]
    wanted = [alone(served, text_prompt(served.tokenizer, text), 8).text for text in texts]
    found = client.completions.create(prompt=texts, max_tokens=8, echo=True, **GREEDY)
    assert [choice.text for choice in found.choices] == [a + b for a, b in zip(texts, wanted, strict=True)]
    ids = [text_prompt(served.tokenizer, text).ids for text in texts]
    found = client.completions.create(prompt=ids, max_tokens=8, **GREEDY)
    assert [choice.text for choice in found.choices] == wanted
    assert client.completions.create(prompt=ids[1], max_tokens=8, **GREEDY).choices[0].text == wanted[1]
    nothing = client.completions.create(prompt="ab", max_tokens=0, echo=True, **GREEDY)
    assert (nothing.choices[0].text, nothing.usage.completion_tokens) == ("ab", 0)


def test_stop_strings_end_an_answer_and_are_no_part_of_it(served, client):
    text = alone(served, text_prompt(served.tokenizer, "ab"), 40).text
    stop = text[12:15]
    for asked in (stop, ["no such text", stop]):
        found = client.completions.create(prompt="ab", max_tokens=40, stop=asked, **GREEDY)
        assert (found.choices[0].text, found.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    parts = client.completions.create(prompt="ab", max_tokens=40, stop=stop, stream=True, **GREEDY)
    assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]


def test_log_probabilities_are_the_models(served, client):
    found = client.completions.create(prompt="ab", max_tokens=6, logprobs=3, **GREEDY).choices[0].logprobs
    prompt = text_prompt(served.tokenizer, "ab")
    made = [token.id for token in alone(served, prompt, 6).tokens]
    contexts = [torch.tensor([prompt.ids + made[:count]]) for count in range(6)]
    logprobs = [served.model.logits(context)[0].log_softmax(-1) for context in contexts]
    shown = [bytes([id]).decode() if id < 128 else f"bytes:\\x{id:02x}" for id in made]
    assert found.tokens == shown and any(id >= 128 for id in made)
    wanted = [float(row[id]) for row, id in zip(logprobs, made, strict=True)]
    assert found.token_logprobs == pytest.approx(wanted, abs=1e-5)
    best = [float(row.max()) for row in logprobs]
    assert [max(top.values()) for top in found.top_logprobs] == pytest.approx(best, abs=1e-5)
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)


def test_log_probabilities_of_a_prompt_that_is_echoed(served, client):
    ids = text_prompt(served.tokenizer, "abé").ids
    contexts = [torch.tensor([ids[:count]]) for count in range(1, len(ids))]
    rows = [served.model.logits(context)[0].log_softmax(-1) for context in contexts]
    wanted = [float(row[id]) for row, id in zip(rows, ids[1:], strict=True)]
    asked = {"echo": True, "logprobs": 2} | GREEDY
    alone = client.completions.create(prompt="abé", max_tokens=0, **asked).choices[0]
    assert (alone.text, alone.finish_reason) == ("abé", "length")
    found = alone.logprobs
    assert found.tokens == ["a", "b", "bytes:\\xc3", "bytes:\\xa9"] and found.text_offset == [0, 1, 2, 2]
    assert found.token_logprobs == pytest.approx(wanted, abs=1e-5)
    best = [float(row.max()) for row in rows]
    assert [max(top.values()) for top in found.top_logprobs] == pytest.approx(best, abs=1e-5)
    further = client.completions.create(prompt=[ids], max_tokens=3, **asked).choices[0]
    assert further.logprobs.token_logprobs[0] is None and further.logprobs.top_logprobs[0] is None
    assert further.logprobs.token_logprobs[1:5] == pytest.approx(wanted, abs=1e-5)
    assert len(further.logprobs.tokens) == len(ids) + 3
    stream = client.completions.create(prompt="abé", max_tokens=3, stream=True, **asked)
    parts = [part.choices[0] for part in stream]
    assert parts[0].text == "abé" and parts[0].logprobs.tokens == found.tokens


def test_log_probabilities_of_a_chat(client):
    asked = {"messages": MESSAGES, "max_tokens": 4, "logprobs": True, "top_logprobs": 2} | GREEDY
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert [len(each.top_logprobs) for each in content] == [2] * 4
    assert all(each.logprob == each.top_logprobs[0].logprob for each in content)
    assert all(len(each.bytes) == 1 for each in content)
    stream = client.chat.completions.create(stream=True, **asked)
    parts = [part.choices[0].logprobs for part in stream]
    streamed = [each for part in parts if part is not None for each in part.content]
    assert [each.token for each in streamed] == [each.token for each in content]


def test_clients_at_the_same_time_get_what_they_would_get_alone(served, client):
    prompts = [f"{'x' * number}{number}" for number in range(9)]  # more than there are rows

    def ask(prompt: str) -> str:
        return client.completions.create(prompt=prompt, max_tokens=30, **GREEDY).choices[0].text

    with ThreadPoolExecutor(9) as threads:
        found = [*threads.map(ask, prompts)]
    assert found == [alone(served, text_prompt(served.tokenizer, prompt), 30).text for prompt in prompts]


TOO_LONG, NOT_HERE = "context_length_exceeded", "unsupported_parameter"


@pytest.mark.parametrize(
    ("asked", "param", "code", "says"),
    [
        ({"prompt": "x" * 500}, "prompt", TOO_LONG, "160 tokens; the prompt has 501"),
        ({"max_tokens": 200}, "max_tokens", TOO_LONG, "200 are asked for"),
        ({"prompt": [5, 999]}, "prompt", None, "999 is no token id"),
        ({"prompt": []}, "prompt", None, "prompt"),
        ({"presence_penalty": 0.5}, "presence_penalty", NOT_HERE, "0.5"),
        ({"logit_bias": {"5": 1}}, "logit_bias", NOT_HERE, "does not implement"),
        ({"temperature": -1}, "temperature", None, "greater than or equal to 0"),
        ({"extra_body": {"beams": 3}}, "beams", "unknown_parameter", "no parameter"),
    ],
)
def test_requests_that_cannot_be_answered(client, asked, param, code, says):
    with pytest.raises(openai.BadRequestError, match=says) as found:
        client.completions.create(**{"model": NAME, "prompt": "ab"} | asked)
    assert (found.value.param, found.value.code) == (param, code)


def test_another_models_name(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'") as found:
        client.completions.create(model="gpt-4", prompt="ab")
    assert (found.value.param, found.value.code) == ("model", "model_not_found")


def test_chats_that_cannot_be_answered(client):
    for change, says in (
        ({"tools": [{"type": "function"}]}, "tools is"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"messages\.0\.content"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "\ufdd0"}]}, "refuses the messages: a message holds"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "maximum context length is 160"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            client.chat.completions.create(**GREEDY | {"messages": MESSAGES} | change)


def test_what_is_no_request(served):
    def post(content: bytes, kind: str = "application/json", path: str = "/completions") -> httpx.Response:
        return httpx.post(served.url + path, content=content, headers={"Content-Type": kind}, timeout=HANG)

    good = json.dumps({"model": NAME, "prompt": "a"}).encode()
    for response, status, says in (
        (post(b"{"), 400, "no valid JSON"),
        (post(b"[" * 100_000), 400, "no valid JSON"),
        (post(b"[1]"), 400, "must be a JSON object"),
        (post(b'{"temperature": NaN}'), 400, "NaN is no number"),
        (post(json.dumps({"model": NAME, "prompt": "\ud800"}).encode()), 400, "prompt"),
        (post(b'{"\\ud800": 1}'), 400, "is no parameter"),
        (post(good, "text/plain"), 415, "application/json"),
        (post(b" " * (5 << 20)), 413, "larger than"),
        (post(good, path="/nothing"), 404, "/v1/nothing"),
        (httpx.get(served.url + "/completions"), 405, "Method Not Allowed"),
    ):
        assert response.status_code == status, response.text
        assert says in response.json()["error"]["message"]
    assert post(good).status_code == 200
    assert httpx.get(served.url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_a_client_that_goes_away_before_its_body_has_come_is_no_error(capfd):
    with running() as served:
        host, port = served.url.split("/")[2].split(":")
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head + b"Content-Length: 9\r\n\r\n{")
        for _ in range(3):  # by then the server has seen that the client is gone
            assert httpx.get(served.url + "/models").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_the_key_is_asked_for_but_not_for_health(capfd):
    with running(key="secret") as served:
        assert served.client(api_key="secret").models.list().data[0].id == NAME
        for wrong in ("secre", "secret2", "é"):
            headers = {b"Authorization": f"Bearer {wrong}".encode()}
            assert httpx.get(served.url + "/models", headers=headers).status_code == 401
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            served.client(api_key="other").completions.create(model=NAME, prompt="a")
        assert httpx.get(served.url.removesuffix("/v1") + "/health").status_code == 200
    assert "secret" not in "".join(capfd.readouterr())


def test_pages_of_other_names_and_too_long_answers_are_refused():
    with running(hosts=LOCAL_NAMES, most_new=9, scores=False) as served:
        for host, status in (
            ("localhost:99", 200), ("LocalHost", 200), ("[::1]:8000", 200), ("evil.example", 403),
            ("localhost.evil.example:80", 403), ("[::1", 403), ("[", 403),
        ):  # fmt: skip
            response = httpx.get(served.url + "/models", headers={"Host": host})
            assert response.status_code == status, host
        client = served.client()
        with pytest.raises(openai.BadRequestError, match=r"max_tokens is 10, and .* allows 9 at most"):
            client.completions.create(prompt="ab", max_tokens=10, **GREEDY)
        with pytest.raises(openai.BadRequestError, match="gives no log-probabilities of its prompt"):
            client.completions.create(prompt="ab", max_tokens=1, echo=True, logprobs=1, **GREEDY)
        assert client.chat.completions.create(messages=MESSAGES, **GREEDY).usage.completion_tokens == 9


class Watched(TextSession):
    """Tells of answers that were dropped, and makes tokens only once it may."""

    dropped = threading.Event()
    may_go_on = threading.Event()

    def drop(self, key: int) -> None:
        super().drop(key)
        self.dropped.set()

    def step(self):
        assert self.may_go_on.wait(HANG)
        return super().step()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(stream):
    Watched.dropped.clear()
    Watched.may_go_on.clear()
    with running(session=Watched) as served:
        body = {"model": NAME, "prompt": "ab", "max_tokens": 150, "stream": stream, "temperature": 0}
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(served.url + "/completions", json=body, timeout=0.5)
        Watched.may_go_on.set()
        assert Watched.dropped.wait(HANG)
        found = served.client().completions.create(prompt="ab", max_tokens=5, **GREEDY)
        assert found.usage.completion_tokens == 5


def test_answers_at_work_end_with_an_error_when_the_server_stops():
    Watched.may_go_on.clear()
    with running(session=Watched) as served, served.client() as client:
        stream = client.completions.create(prompt="ab", max_tokens=150, stream=True, **GREEDY)
        served.worker.close()
        Watched.may_go_on.set()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError, match="the server is stopping"):
            client.completions.create(prompt="ab", **GREEDY)
