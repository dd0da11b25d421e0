"""Answers that a model writes, against generation one by one; on several ranks: test_ranks.py."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.engine.complete import complete_model
from llmkit.evaluation.answers import AnswerRequest, answers, rows_at_once
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import generate
from llmkit.parallel.mesh import Mesh
from llmkit.plan import DeviceFacts, plan_for_shape
from tests.engine.rank_cases import CONFIG
from tests.evaluation import toys

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of_model(toys.model(), HubText(toys.tokenizer()), Mesh(), tokens=4 * toys.CONTEXT)


def alone(scorer: Scorer, prompt: AnswerRequest, seed: int = 0) -> list[int]:
    sampling = Sampling(**{**prompt.sampling, "seed": seed})
    tokens = generate(
        scorer.model(), prompt.ids, prompt.max_new_tokens, sampling, stops={scorer.text.eos_id}
    )
    return list(tokens)


def test_answers_are_those_of_each_prompt_alone_without_special_tokens(scorer):
    prompts = [AnswerRequest(scorer.text.encode(" row" * n), 3 + 4 * n, [], GREEDY) for n in range(1, 8)]
    assert rows_at_once(scorer) == 4 and rows_at_once(replace(scorer, rows=9)) == 9
    wanted = [scorer.text.decode(alone(scorer, prompt)) for prompt in prompts]
    assert answers(scorer, prompts) == wanted and len(set(wanted)) == 7
    assert not scorer.model().training


def test_a_sample_depends_on_its_seed_alone(scorer):
    ids = scorer.text.encode("the model")
    how = {"temperature": 1.0, "top_k": 50}
    prompts = [AnswerRequest(ids, 9, [], how | {"seed": seed}) for seed in (3, 4, 3)]
    one, other, again = answers(scorer, prompts)
    assert one == again != other


def test_an_answer_ends_before_a_string_or_at_a_special_token(scorer):
    names = {number: name for name, number in scorer.text.tokenizer.control_tokens.items()}
    texts = (toys.sentence(random.Random(number), 5) for number in range(99))
    prompts = (AnswerRequest(scorer.text.encode(text), 40, [], GREEDY) for text in texts)
    written = ((prompt, alone(scorer, prompt)) for prompt in prompts)
    prompt, ids = next((p, ids) for p, ids in written if any(id in names for id in ids))
    whole = scorer.text.decode(ids)
    part, calls = whole[2:4], []
    stopped = replace(scorer, before_batch=lambda: calls.append(1))
    found = answers(stopped, [prompt._replace(stops=["none of it", part])])
    assert found == [whole[: whole.index(part)]] and calls == [1]
    place = next(number for number, id in enumerate(ids) if id in names)
    found = answers(scorer, [prompt._replace(stops=[names[ids[place]]])])
    assert found == [scorer.text.decode(ids[:place])] != [whole]


def test_a_model_that_is_complete_is_used_itself():
    model, plan = toys.model(), plan_for_shape(toys.shape(), CONFIG, DeviceFacts())
    assert complete_model(SimpleNamespace(model=model), plan, Mesh()) is model


def test_whatever_ends_an_answer_of_the_model_ends_one_of_a_task():
    """As in transformers, where the tokens that generation_config.json names end it, too."""
    files = toys.tokenizer().files()
    config = json.loads(files["tokenizer_config.json"]) | {"answer_ends": [toys.CHAT[1], "no token"]}
    text = HubText(Tokenizer.from_config(files["tokenizer.json"].decode(), config))
    request = AnswerRequest([5], 3, [toys.CHAT[0], "e"], {"temperature": 0.0}).request(text)
    special = text.tokenizer.control_tokens
    assert request.stops == {special[each] for each in (toys.END, *toys.CHAT)}
