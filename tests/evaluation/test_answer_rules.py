"""generation_kwargs of tasks."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.evaluation.answer_rules import read_rules


def test_what_tasks_ask_for_under_lm_evals_names():
    greedy = {"temperature": 0.0}
    assert read_rules({"until": "a", "max_gen_toks": 5, "max_tokens": 9}, 40) == (5, ["a"], greedy)
    assert read_rules({"until": None, "do_sample": False, "temperature": 0.7, "top_k": None}, 400) == (
        256, [], greedy,
    )  # fmt: skip
    asked = {"until": ["a", "b"], "max_new_tokens": 7, "temperature": 0.7, "top_p": 0.9}
    assert read_rules(asked, 40) == (7, ["a", "b"], {"temperature": 0.7, "top_p": 0.9})
    assert read_rules({"do_sample": True, "max_tokens": 1}, 40).sampling == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "answers of 256 tokens, and the model can see 40"),
        ({"max_gen_toks": 40}, "answers of 40 tokens"),
        ({"max_gen_toks": 0}, "answers of 0 tokens"),
        ({"max_gen_toks": 4, "beams": 3}, "beams is not known here"),
        ({"max_gen_toks": 4, "temperature": 1, "top_p": 2.0}, "top-p is 2.0"),
    ],
)
def test_what_cannot_be_done_is_one_message(settings, says):
    with pytest.raises(UserError, match=says):
        read_rules(settings, 40)
