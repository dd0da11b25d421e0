"""The model as EleutherAI's lm-eval asks it: the counterpart of its `HFLM`, on all ranks of a launch.

Imports lm-eval, an optional package: only `llmkit.evaluation.harness` imports this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from llmkit.evaluation.answer_rules import AnswerRules, read_rules
from llmkit.evaluation.answers import AnswerRequest
from llmkit.evaluation.score import Question
from llmkit.evaluation.team import Lead


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval has no types for mypy
    """Answers lm-eval's requests; lives on rank 0, whose `lead` lets all ranks compute.

    So that figures can be compared, text becomes tokens as in lm-eval's own adapter (`HubText`), contexts are
    cut on their left, and rolling windows are the same. quiet: no progress bars. facts: for its results file.
    """

    backend = "causal"

    def __init__(self, lead: Lead, facts: dict[str, Any], *, quiet: bool = False) -> None:
        super().__init__()
        self.lead, self.text, self.facts, self.quiet = lead, lead.text, facts, quiet

    @property
    def max_length(self) -> int:
        """Most tokens that the model can see."""
        return self.lead.context_length

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return self.text.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """See `HubText.encode`."""
        return self.text.encode(string, add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        with self._bar(len(requests), "log-likelihoods") as done:
            questions = [Question(context, continuation) for _, context, continuation in requests]
            scores = self.lead.loglikelihoods(questions, done)
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """See lm-eval's `LM.loglikelihood`."""
        found = super().loglikelihood(requests, disable_tqdm=True)
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, score)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """See lm-eval's `LM.loglikelihood_rolling`."""
        windows = [self._windows(request.args[0]) for request in requests]
        questions = [question for each in windows for question in each]
        with self._bar(len(questions), "windows of texts") as done:
            scores = iter(self.lead.loglikelihoods(questions, done))
        found = [sum(next(scores).log_likelihood for _ in each) for each in windows]
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return found

    def _windows(self, text: str) -> list[Question]:
        """A text in pieces, each with as much context as fits."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [Question(*make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See lm-eval's `LM.generate_until`."""
        prompts = [
            self._prompt(context, read_rules(settings, self.max_length), number)
            for number, (context, settings) in enumerate(request.args for request in requests)
        ]
        with self._bar(len(prompts), "answers") as done:
            found = self.lead.answers(prompts, done)
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return found

    def _prompt(self, context: str, rules: AnswerRules, number: int) -> AnswerRequest:
        """number: of the request, from which a sample has its seed."""
        ids = self.tok_encode(context)[-(self.max_length - rules.max_new_tokens) :]
        sampling = {**rules.sampling, "seed": number}
        stops = [*rules.stops, self.text.eos]
        return AnswerRequest(ids or [self.prefix_token_id], rules.max_new_tokens, stops, sampling)

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """See `HubText.chat`."""
        return self.text.chat(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, which lm-eval records."""
        return self.text.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart in lm-eval's cache of requests."""
        return f"llmkit-{self.text.tokenizer.hash}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into its results about the model."""
        return self.facts

    @contextlib.contextmanager
    def _bar(self, total: int, what: str) -> Iterator[Callable[[int], object]]:
        with tqdm(total=total, desc=what, disable=self.quiet) as bar:
            yield bar.update
