"""The figures of a whole run, counted by hand from those of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.api import load
from llmkit.config.load import load as load_file
from llmkit.config.memory import checkpoint_bytes
from llmkit.errors import UserError
from llmkit.estimate.communication import HOST_BANDWIDTH
from llmkit.estimate.devices import Hardware
from llmkit.estimate.interruptions import daly_interval, lost_share
from llmkit.estimate.search import Candidate, Found, Ground, as_given, search
from llmkit.monitor.cost import Prices
from llmkit.planner.assumed import open_subject
from llmkit.planner.outlook import DISK_BANDWIDTH, Question, checkpoint_size, outlook

RECIPE = str(Path(__file__).parents[2] / "configs/recipes/llama-3.1-8b.yaml")


@pytest.fixture(scope="module")
def found() -> Found:
    given = ["checkpoint.keep_last=2", "checkpoint.background=true"]
    subject = open_subject(load, RECIPE, given, None)
    return search(subject.loaded, Ground(Hardware().fleet("h100", 8, 8)))


@pytest.fixture(scope="module")
def best(found: Found) -> Candidate:
    return found.fitting[0]


def test_time_is_steps_with_what_is_lost(best: Candidate):
    found = outlook(best, Question(1e11, Prices(), device_hours=6400.0, given_rate=True))
    stall = checkpoint_size(best.plan).value / 64 / HOST_BANDWIDTH
    between = 100 * 3600.0
    interval = daly_interval(stall, between)
    lost = lost_share(interval, stall, between)
    assert found.steps == -(-int(1e11) // (512 * 8192))
    terms = {term.name: term.value for term in found.terms}
    every = min(1000 * best.time.seconds, 30 * 60)
    assert terms["lost as configured"] == pytest.approx(lost_share(every, stall, between))
    assert terms["lost as configured"] > found.lost, "Daly's interval loses least"
    assert (found.stall, found.interval, found.lost) == pytest.approx((stall, interval, lost))
    assert found.seconds == pytest.approx(found.steps * best.time.seconds / (1 - lost))
    assert found.failures == pytest.approx(found.seconds / between)
    assert found.low < found.seconds < found.high


def test_a_run_that_never_ends_is_refused(best: Candidate):
    with pytest.raises(UserError, match=r"a run on 64 devices never ends: one of them fails every 56.2 s"):
        outlook(best, Question(1e11, Prices(), device_hours=1.0))


def test_a_short_run_loses_no_more_than_itself(best: Candidate):
    """It ends before its first save."""
    question = Question(1e8, Prices())
    terms = {term.name: term for term in outlook(best, question).terms}
    between = terms["between failures"].value
    lost = lost_share(24 * best.time.seconds, terms["stall of a save"].value, between)
    assert terms["lost as configured"].value == pytest.approx(lost)
    assert "no save before the end" in terms["lost as configured"].formula


def test_expenses(best: Candidate):
    found = outlook(best, Question(1e11, Prices(per_device_hour=2.0, grid=100.0)))
    hours = 64 * found.seconds / 3600
    assert found.expense.device_hours == pytest.approx(hours)
    assert found.expense.money == pytest.approx(2 * hours)
    assert found.expense.kwh == pytest.approx(0.7 * hours)
    terms = {term.name: term for term in found.terms}
    assert terms["CO2"].value == pytest.approx(found.expense.kwh / 10) and terms["CO2"].unit == "kg"
    assert terms["between failures"].source.startswith("Grattafiori")


def test_disks_hosts_and_network(best: Candidate):
    terms = {term.name: term for term in outlook(best, Question(1e11, Prices())).terms}
    saved = checkpoint_bytes(2) * 8_030_261_248
    assert terms["checkpoint"].value == saved
    assert terms["disk for checkpoints"].value == 3 * saved
    assert terms["disk for tokens"].value == 4e11, "ids beyond 65,536 take 4 bytes"
    assert terms["host memory of a node"].value >= saved / 8
    sent = terms["network of a node"].value * best.time.seconds
    assert best.plan.layout.zero_stage == 1 and sent == pytest.approx(6 * 8_030_261_248)


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_sent_for_each_micro_batch_passes_the_network_as_often(found: Found, stage: int):
    each = next(one for one in found.fitting if one.plan.layout.zero_stage == stage)
    times = each.plan.accumulation_steps
    terms = {term.name: term for term in outlook(each, Question(1e11, Prices())).terms}
    sent = terms["network of a node"].value * each.time.seconds
    # fp32 gradients: summed on all ranks by DeepSpeed's stage 2, scattered at stage 3; weights in bf16.
    bytes_ = times * 2 * 4 + 2 if stage == 2 else times * (4 + 2 * 2)
    assert times > 1 and sent == pytest.approx(bytes_ * 8_030_261_248)


def test_adapters_send_their_gradients_and_zero_3_all_weights():
    lora = ["train.init_from=w", "train.lora.rank=8", "parallel.zero_stage=3", "train.micro_batch_size=1"]
    each = as_given(load_file(RECIPE, lora), Ground(Hardware().fleet("h100", 8, 8)))
    terms = {term.name: term for term in outlook(each, Question(1e9, Prices())).terms}
    times, tuned = each.plan.accumulation_steps, each.plan.num_trained
    sent = times * (4 * tuned + 2 * 2 * (8_030_261_248 + tuned))
    assert tuned == 8 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert terms["network of a node"].value * each.time.seconds == pytest.approx(sent)
    assert terms["checkpoint"].value == 12 * tuned


def test_training_waits_for_the_disk_where_saves_are_not_beside_it(best: Candidate):
    off = best.plan.config.checkpoint.model_copy(update={"background": False})
    plan = replace(best.plan, config=best.plan.config.model_copy(update={"checkpoint": off}))
    question = Question(1e11, Prices())
    stalls = [outlook(each, question).stall for each in (best, replace(best, plan=plan))]
    assert stalls[1] == pytest.approx(stalls[0] + checkpoint_size(plan).value / 8 / DISK_BANDWIDTH)
    assert outlook(replace(best, plan=plan), question).lost > outlook(best, question).lost
