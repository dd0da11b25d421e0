"""The figures of a whole run, counted by hand from those of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.api import load
from llmkit.config.load import load as load_file
from llmkit.config.memory import checkpoint_bytes
from llmkit.config.schema import Checkpoint
from llmkit.errors import UserError
from llmkit.estimate.communication import HOST_BANDWIDTH
from llmkit.estimate.devices import Hardware
from llmkit.estimate.interruptions import daly_interval, lost_share
from llmkit.estimate.search import MICRO_BATCH, Candidate, Found, Ground, as_given, search, with_settings
from llmkit.monitor.cost import Prices
from llmkit.planner.assumed import open_subject
from llmkit.planner.outlook import DISK_BANDWIDTH, Question, checkpoint_size, disk, outlook

RECIPE = str(Path(__file__).parents[2] / "configs/recipes/llama-3.1-8b.yaml")
QWEN3 = str(Path(__file__).parents[2] / "configs/models/qwen3-30b-a3b.yaml")


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
    host = {term.name: term.value for term in best.memory.host}
    assert set(host) == {"process", "data workers", "copy of a checkpoint"}
    assert terms["host memory of a node"].value == 8 * sum(host.values()) > saved / 8
    sent = terms["network of a node"].value * best.time.seconds
    assert best.plan.layout.zero_stage == 1 and sent == pytest.approx(6 * 8_030_261_248)


@pytest.mark.parametrize(
    ("settings", "count", "says"),
    [
        ({"keep_last": 3}, 4, "(3 newest + 1 being written) x "),
        ({"keep_last": 1, "keep_best": True}, 3, "(1 newest + the best one + 1 being written) x "),
        # Of 10,000 steps 2,000 divides 5, and 3,000 divides 3, of which one is saved: 6,000.
        ({"keep_last": 3, "keep_every": 2000}, 9, "(3 newest + 5 of steps that 2,000 divides + 1 being"),
        ({"keep_every": 3000, "every_steps": 2000}, 5, "1 of steps that 3,000 divides"),
        # 100 saves by the clock meet one in ten of the steps that are kept, and no more than there are.
        ({"keep_every": 10, "every_steps": 0, "every_minutes": 1.0}, 14, "10 of steps"),
        ({"keep_every": 5000, "every_steps": 0, "every_minutes": 1.0}, 5, "1 of steps"),
    ],
)
def test_the_disk_holds_all_that_is_kept_and_what_is_being_written(settings, count, says):
    given = Checkpoint.model_validate({"every_steps": 1000, "every_minutes": 0.0, **settings})
    term = disk(given, 10_000, 6000.0, 2.0**30)
    assert term.value == count * 2**30 and says in term.formula


@pytest.mark.parametrize("every", [1, 3, 4, 10])
def test_the_disk_is_enough_for_a_run_that_is_played_through(every):
    """Every save in order, as `superfluous` deletes: what lies there is never more than the estimate."""
    given = Checkpoint.model_validate(
        {"every_steps": 2, "every_minutes": 0.0, "keep_last": 2, "keep_every": every, "keep_best": True}
    )
    there, most = list[int](), 0
    for step in range(2, 41, 2):
        most = max(most, len(there) + 1)
        there.append(step)
        older = there[:-1]
        gone = older[: max(0, len(older) - 1)]
        best = 6
        there = [each for each in there if each not in gone or each % every == 0 or each == best]
    kept = disk(given, 40, 1.0, 1.0).value
    assert most <= kept <= most + 4, "the best, the newest and the one being written may be kept anyhow"


def test_a_run_that_saves_as_configured_takes_no_less(best: Candidate):
    found = outlook(best, Question(1e11, Prices(), device_hours=6400.0, given_rate=True))
    terms = {term.name: term.value for term in found.terms}
    alone = found.steps * best.time.seconds
    assert terms["time as configured"] == pytest.approx(alone / (1 - terms["lost as configured"]))
    assert terms["time as configured"] > found.seconds
    rows = best.plan.config.train.global_batch_size / best.plan.layout.data_parallel_size
    assert terms["data for a rank"] == pytest.approx(rows * 8192 / best.time.seconds)


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


@pytest.mark.parametrize(("experts", "share", "here"), [(8, 0.0, 1.0), (16, 0.5, 0.5), (64, 0.875, 0.0)])
def test_tokens_leave_a_node_where_experts_are_on_others(experts: int, share: float, here: float):
    """Qwen3 30B-A3B, 48 layers: a rank sends 8 copies of 2,048 values of two bytes for each of its tokens,
    six times with full recomputation; half of them leave the node where 16 ranks have the experts. A node
    then shares half of these with others, and where each expert is on one rank alone, none."""
    layout = {
        "parallel.expert_parallel_size": experts, "parallel.zero_stage": 1, "parallel.engine": "native",
        "parallel.activation_checkpointing": "full", MICRO_BATCH: 1,
    }  # fmt: skip
    loaded = with_settings(open_subject(load, QWEN3, [], 1e11).loaded, layout)
    each = as_given(loaded, Ground(Hardware().fleet("h100", 8, 8)))
    terms = {term.name: term for term in outlook(each, Question(1e11, Prices())).terms}
    network, tokens = terms["network of a node"], each.plan.tokens_per_step / 64
    copies = 8 * tokens * 8 * 2048 * 2 * 6 * 48 * share
    dealt = 48 * 128 * 3 * 2048 * 768
    sent = 6 * (each.plan.num_trained - dealt * (1 - here)) + copies
    assert network.value * each.time.seconds == pytest.approx(sent)
    assert ("of tokens to experts" in network.formula) == (share > 0)


def test_training_waits_for_the_disk_where_saves_are_not_beside_it(best: Candidate):
    off = best.plan.config.checkpoint.model_copy(update={"background": False})
    plan = replace(best.plan, config=best.plan.config.model_copy(update={"checkpoint": off}))
    question = Question(1e11, Prices())
    stalls = [outlook(each, question).stall for each in (best, replace(best, plan=plan))]
    assert stalls[1] == pytest.approx(stalls[0] + checkpoint_size(plan).value / 8 / DISK_BANDWIDTH)
    assert outlook(replace(best, plan=plan), question).lost > outlook(best, question).lost
