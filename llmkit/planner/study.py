"""All that `llmkit plan` finds out of a configuration on a fleet, before any of it is shown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from llmkit.errors import UserError
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.interruptions import DEVICE_HOURS
from llmkit.estimate.layout_choice import layouts_of
from llmkit.estimate.search import Candidate, Found, Ground, as_given, candidate
from llmkit.monitor.cost import Prices
from llmkit.planner.assumed import Load, Subject, open_subject
from llmkit.planner.ground import Place
from llmkit.planner.launch import overrides_of
from llmkit.planner.law_table import LawRow, law_rows
from llmkit.planner.outlook import Outlook, Question, outlook
from llmkit.planner.remedies import remedies


@dataclass(frozen=True)
class Study:
    """A configuration on a fleet.

    path, overrides: as they were given. loss: to reach; None where none is asked for. asked: the layout of
    the configuration; None where that is left to `parallel.layout: auto`, or where training refuses it, for
    the reason `refusal`. found: by the search.
    """

    path: str
    overrides: tuple[str, ...]
    subject: Subject
    ground: Ground
    question: Question
    loss: float | None
    asked: Candidate | None
    refusal: str
    found: Found
    laws: tuple[LawRow, ...]

    @property
    def best(self) -> Candidate:
        """The fastest layout that fits."""
        return self.found.fitting[0]

    @property
    def fleet(self) -> Fleet:
        """The devices."""
        return self.ground.fleet

    @cached_property
    def outlook(self) -> Outlook:
        """The run with the best layout."""
        return outlook(self.best, self.question)

    @property
    def best_overrides(self) -> list[str]:
        """What realises the best layout, beside the overrides that were given."""
        changed = overrides_of(self.best, self.subject.loaded.config)
        replaced = {each.partition("=")[0] for each in changed}
        return [*(each for each in self.overrides if each.partition("=")[0] not in replaced), *changed]


def study(
    load: Load, options: argparse.Namespace, config: str, overrides: Sequence[str], place: Place
) -> Study:
    """Tries the layouts of a configuration on some devices.

    Raises UserError for mistakes in the configuration, and where no layout of it fits.
    """
    overrides = tuple(overrides)
    subject = open_subject(load, config, overrides, options.tokens)
    loaded = subject.loaded
    ground = place.ground(subject)
    asked, refusal = None, ""
    try:
        if loaded.config.parallel.layout == "given":
            asked = asked_layout(subject, ground)
    except UserError as error:
        refusal = str(error)
    found = layouts_of(loaded, ground)
    if not found.fitting:
        if found.nearest is None:
            raise UserError(refusal or found.refused[0])
        raise UserError(remedies(loaded, ground, found))
    tokens = options.tokens or _tokens(found.fitting[0])
    prices = Prices.of(loaded.config.monitor)
    if options.price_per_hour is not None:
        prices = replace(prices, per_device_hour=options.price_per_hour)
    question = Question(tokens, prices, options.mtbf or DEVICE_HOURS, options.mtbf is not None)
    laws = law_rows(found.fitting[0].plan.model, tokens, flops=options.flops, loss=options.loss)
    return Study(
        config, overrides, subject, ground, question, options.loss, asked, refusal, found, tuple(laws)
    )  # fmt: skip


def _tokens(best: Candidate) -> float:
    """Of the run: by its steps, or by the time that it has."""
    train = best.plan.config.train
    if train.max_steps is not None:
        return float(train.max_steps * best.plan.tokens_per_step)
    assert train.max_minutes is not None, "a check asks for one of them"
    return max(1.0, train.max_minutes * 60.0 * best.time.tokens_per_second)


def asked_layout(subject: Subject, ground: Ground) -> Candidate:
    """The layout of the configuration; a micro-batch that it leaves open is the largest that fits.

    Raises UserError where training refuses it.
    """
    if subject.loaded.config.train.micro_batch_size != "auto":
        return as_given(subject.loaded, ground)
    return candidate(subject.loaded, ground, {})
