"""The model of a step's time against published runs, and how its parts depend on a layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from statistics import mean

import pytest

from benchmarks.published import FITTED_ROWS, L8, MEGATRON, OUTSIDE, left_out, mean_error, with_update
from llmkit.config.memory import show_bytes
from llmkit.config.model_section import Moe
from llmkit.config.parameters import EXPERTS
from llmkit.estimate.collectives import START, Spread
from llmkit.estimate.communication import Sent, gradients, host_bytes, sharded_weights
from llmkit.estimate.computing import computing
from llmkit.estimate.constants import FITTED
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.part_sources import formula_of
from llmkit.estimate.rates import GpuRates
from llmkit.estimate.step_parts import StepParts, step_parts
from llmkit.estimate.workload import Exchange, Workload

FORMS = {"attention": "cudnn", "head_loss": "triton"}
BASE = with_update(Workload(L8, 8192, 256, 64, 2, zero=1, forms=FORMS, exchange=Exchange(gathers_late=True)))


def fleet(nodes: int) -> Fleet:
    return Hardware().fleet("h100", nodes=nodes)


def parts(work: Workload) -> StepParts:
    return step_parts(work, fleet(max(1, work.world // 8)))


def test_published_runs_that_nothing_was_fitted_to_are_met() -> None:
    assert mean_error(OUTSIDE, FITTED) < 0.08
    assert mean_error(FITTED_ROWS, FITTED) < 0.09
    assert abs(mean(row.error(FITTED) for row in OUTSIDE)) < 0.05
    assert max(abs(row.error(FITTED)) for row in OUTSIDE) < 0.16


def test_every_published_configuration_counts_once() -> None:
    """Runs of one configuration on one device have one prediction: two of them would count it twice."""
    rows = [(repr(row.work), row.device, row.reached) for row in (*FITTED_ROWS, *OUTSIDE)]
    assert len(set(rows)) == len(rows)
    assert (len(FITTED_ROWS), len(OUTSIDE)) == (19, 23), "docs/plan.md and docs/log.md name them"


def test_weights_in_fp32_are_twice_as_many_bytes() -> None:
    """Nothing is hidden here, so that seconds are bytes: two gathers at stage 3, one below, host and back."""
    both = [replace(BASE, length=1, weight_bytes=each, accumulates=0.0) for each in (2, 4)]
    size, ranks, rate = L8.num_parameters, 64, 8 * 46e9

    def difference(find: Callable[[Workload], float]) -> float:
        two, four = map(find, both)
        return four - two

    def sends(part: Callable[..., Sent], zero: int) -> Callable[[Workload], float]:
        nothing = computing(both[0], GpuRates(fleet(8).device)).times(0.0)
        return lambda work: part(replace(work, zero=zero), fleet(8), nothing).exposed

    transfer = (ranks - 1) / ranks * 2 * size / min(rate, 450e9 * 0.82)
    assert difference(sends(sharded_weights, 3)) == pytest.approx(2 * transfer, rel=1e-3)
    spread, bucket = Spread(fleet(8), ranks), 2 * 25 * 2**20
    messages = 2 * size / bucket * (START + spread.latency)
    assert difference(sends(gradients, 1)) == pytest.approx(transfer + messages, rel=1e-3)
    there = replace(both[0], zero=3, offload=True), replace(both[1], zero=3, offload=True)
    two, four = (host_bytes(work)[1] for work in there)
    assert four - two == pytest.approx(2 * both[0].micro_batches * 2 * size / ranks)


def test_rows_within_one_node_are_not_predicted_slower_than_those_of_clusters() -> None:
    sharded = [row for row in (*FITTED_ROWS, *OUTSIDE) if row.work.zero == 3]
    node = [row.error(FITTED) for row in sharded if row.work.world == 8 and row.work.linear == "bf16"]
    more = [row.error(FITTED) for row in sharded if row.work.world > 8 and row.work.linear == "bf16"]
    assert len(node) > 10
    assert abs(mean(node) - mean(more)) < 0.04


@pytest.mark.exhaustive
def test_each_family_is_met_by_what_was_fitted_to_the_others() -> None:
    errors = [abs(each) for _, own in left_out(FITTED_ROWS).values() for each in own]
    assert mean(errors) < 0.10


def test_the_parts_add_up_and_the_rest_is_hidden() -> None:
    found = parts(BASE)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert {"matmul", "attention", "pointwise", "head", "loss", "optimizer"} <= found.parts.keys()
    assert found.hidden.keys() == {"gradients and weights"}
    assert "recompute" not in found.parts


def test_sharding_within_a_node_costs_little() -> None:
    """Gathers of a layer are shorter than its computing, and hidden by it."""
    node = replace(BASE, world=8, zero=3, exchange=Exchange(each_micro_batch=True))
    found = parts(node)
    assert found.parts["gathers of ZeRO-3"] < 0.04 * found.seconds
    assert found.hidden["gathers of ZeRO-3"] > 5 * found.parts["gathers of ZeRO-3"]
    thin = parts(replace(node, micro_batch=1, length=512))
    assert thin.parts["gathers of ZeRO-3"] > 0.3 * thin.seconds  # too little to compute beside them


def test_tensor_parallelism_over_nodes_is_dear() -> None:
    work = replace(BASE, tensor=8, world=16, sequence_parallel=True, rows=64)
    inside = parts(work).parts["tensor parallelism"]
    over = parts(replace(work, tensor=16)).parts["tensor parallelism"]
    assert over > 1.5 * inside
    pipelined = replace(work, exchange=MEGATRON)
    assert parts(pipelined).parts["tensor parallelism"] < 0.5 * inside
    wide = parts(replace(pipelined, tensor=16)).parts["tensor parallelism"]
    assert wide > 4 * parts(pipelined).parts["tensor parallelism"]  # no pieces beside pieces over nodes


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"recompute": "full"}, "recompute"),
        ({"context": 2}, "context parallelism"),
        ({"pipeline": 2}, "pipeline"),
        ({"accumulates": 10.0}, "accumulation"),
        ({"micro_batch": 1, "length": 32, "fused": False}, "launching"),
        ({"micro_batch": 1, "length": 128, "hooks": 390.0}, "launching"),
        ({"world": 128, "rows": 512}, "stragglers"),
    ],
)
def test_parts_appear_with_what_causes_them(change: dict[str, object], part: str) -> None:
    before, after = parts(BASE), parts(replace(BASE, **change))  # type: ignore[arg-type]
    assert after.parts[part] > before.parts.get(part, 0.0)


LONG = replace(BASE, length=131072, rows=64, micro_batch=1, recompute="full", context=8)


def test_ulysses_waits_for_six_messages_a_layer_and_a_ring_for_its_last() -> None:
    """8B at 131,072 tokens on 8 ranks: 16,384 a rank, of 4,096 + 2 x 1,024 values before attention and 4,096
    behind it, two bytes each; forward, once more in recomputation, and backward."""
    spread, layers = Spread(fleet(8), 8), L8.num_hidden_layers
    ulysses = replace(LONG, context_form="ulysses")
    once = sum(16384 * width * 2 * 7 / 8 / spread.bandwidth + START + 1.5e-6 for width in (6144, 4096))
    found = parts(ulysses)
    assert found.parts["context parallelism"] == pytest.approx(3 * once * layers * ulysses.micro_batches)
    assert "context parallelism" not in found.hidden
    ring = parts(LONG)
    gradients = 16384 * 2048 * 4 / spread.bandwidth + START + 1.5e-6
    waited = gradients * layers * LONG.micro_batches
    assert waited < ring.parts["context parallelism"] < 4 * waited
    keys = 16384 * 2048 * 2 / spread.bandwidth
    assert ring.hidden["context parallelism"] > 7 * (3 * keys + gradients) * layers * LONG.micro_batches


def test_a_ring_computes_attention_in_passes_over_its_scores() -> None:
    ulysses = parts(replace(LONG, context_form="ulysses"))
    ring = replace(LONG, forms={**FORMS, "attention": "ring"})
    assert parts(LONG).parts["attention"] == pytest.approx(ulysses.parts["attention"])  # others' rings
    assert parts(ring).parts["attention"] > 4 * ulysses.parts["attention"]
    alone = parts(replace(LONG, context=1))
    assert ulysses.parts["attention"] == pytest.approx(alone.parts["attention"])  # a row a rank, or 8 by 8


def test_heads_that_are_too_few_are_sent_more_often() -> None:
    few = replace(LONG, context=16, context_form="ulysses", shape=replace(L8, num_key_value_heads=4))
    assert few.exchanged == (4096 + 2 * 16 * 128, 4096)
    assert replace(few, tensor=2).exchanged == (2048 + 2 * 16 * 128, 2048)


MIXTURE = replace(
    L8, num_hidden_layers=16,
    moe=Moe(num_experts=64, num_experts_per_tok=8, moe_intermediate_size=1024),
)  # fmt: skip
DEALT = with_update(replace(BASE, shape=MIXTURE, expert=8))
ONCE, TWICE = (replace(FITTED, overhead=each) for each in (1.0, 2.0))


def test_dealt_out_experts_are_sent_to_in_four_messages_a_layer() -> None:
    """16,384 tokens, 8 experts each, 4,096 values of two bytes: forward, and backward their gradients; full
    recomputation sends forward once more, a shared expert hides one message each way."""
    spread, times = Spread(fleet(8), 8), 16 * DEALT.micro_batches
    once = 16384 * 8 * 4096 * 2 * 7 / 8 / spread.bandwidth + START + 1.5e-6
    counts = 64 * 4 * 7 / 8 / spread.bandwidth + START + 1.5e-6
    part, found = "expert parallelism", parts(DEALT)
    assert found.parts[part] == pytest.approx((4 * once + counts) * times)
    assert part not in found.hidden and part not in parts(replace(DEALT, expert=1)).parts
    again = parts(replace(DEALT, recompute="full"))
    assert again.parts[part] == pytest.approx((6 * once + 2 * counts) * times)
    shared = MIXTURE.moe.model_copy(update={"shared_expert_intermediate_size": 1024})
    beside = parts(replace(DEALT, shape=replace(MIXTURE, moe=shared)))
    assert 0.0 < beside.hidden[part] < 2 * once * times
    assert beside.parts[part] < found.parts[part]
    slower = step_parts(replace(DEALT, shape=replace(MIXTURE, moe=shared)), fleet(8), TWICE)
    usual = step_parts(replace(DEALT, shape=replace(MIXTURE, moe=shared)), fleet(8), ONCE)
    assert slower.hidden[part] == pytest.approx(2 * usual.hidden[part]), "what is hidden takes that room"


def test_experts_beyond_a_node_are_sent_to_over_the_network() -> None:
    inside, outside = parts(DEALT), parts(replace(DEALT, expert=32))
    assert outside.parts["expert parallelism"] > 3 * inside.parts["expert parallelism"]


def test_fewer_ranks_sum_the_gradients_of_dealt_out_experts() -> None:
    experts = sum(prod(each.shape) for each in MIXTURE.tensors if EXPERTS in each.name)
    assert DEALT.dealt == experts / 8
    assert DEALT.parameters == DEALT.trained == MIXTURE.num_parameters - experts + experts / 8
    assert DEALT.updated == MIXTURE.num_parameters / 64
    assert replace(DEALT, zero=0).updated == DEALT.parameters
    everywhere = parts(replace(DEALT, expert=1))
    assert parts(DEALT).parts["gradients and weights"] < everywhere.parts["gradients and weights"]
    nothing = computing(DEALT, GpuRates(fleet(8).device)).times(0.0)
    each_its_own = gradients(replace(DEALT, expert=64), fleet(8), nothing).exposed
    dense = replace(DEALT, shape=replace(MIXTURE, moe=Moe()), expert=1)
    others = MIXTURE.num_parameters - experts
    found = gradients(dense, fleet(8), nothing).exposed * others / dense.shape.num_parameters
    assert each_its_own == pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_formula_tells_of_experts_all_that_their_seconds_are_of(zero: int) -> None:
    """Gradients in fp32, weights in bf16: 16 layers of 64 experts, of which a rank has 8, and the rest."""
    work = replace(DEALT, zero=zero, exchange=Exchange(all_reduce=zero == 0, gathers_late=True))
    text, _ = formula_of("gradients and weights", work, fleet(8), FITTED)
    whole, experts = text.split("; of experts ")
    dealt = 16 * 8 * 3 * 4096 * 1024
    for part, elements, ranks in ((whole, DEALT.parameters - dealt, 64), (experts, dealt, 8)):
        how = f"x 2 (all-reduce) over {ranks} ranks"
        if zero:
            how = f"and {show_bytes(elements * 2)} of weights over {ranks} ranks"
        assert part.startswith(f"{show_bytes(elements * 4)} of gradients {how}")


def test_offloading_takes_the_update_to_the_host() -> None:
    found = parts(replace(BASE, offload=True))
    assert found.parts["offload"] > parts(BASE).parts["optimizer"]
    assert "optimizer" not in found.parts


def test_offloaded_weights_come_from_the_host_for_every_pass() -> None:
    """8B on one GPU: weights twice, and sums of gradients, take longer than 8,192 tokens compute.

    On a host's 20 GB/s 16 GB twice and 32 GB of fp32 sums are 3.2 s.
    """
    alone = replace(BASE, world=1, rows=64, micro_batch=1, offload=True, zero=3)
    found, size = parts(alone), L8.num_parameters
    come = (64 * 2 * 2 + 63 * 4) * size / 20e9
    assert found.hidden["offload"] + found.parts["offload"] == pytest.approx(come + size * 0.5e-9)
    assert found.parts["offload"] > found.seconds / 2
    added_up_on_the_device = parts(replace(alone, zero=2)).parts["offload"]
    assert added_up_on_the_device == pytest.approx(size * (2 / 20e9 + 0.5e-9))


def test_a_sequence_of_sums_in_each_micro_batch_costs_more_than_one_a_step() -> None:
    once = replace(BASE, micro_batch=1)
    each = replace(once, exchange=Exchange(each_micro_batch=True, gathers_late=True))
    name = "gradients and weights"
    assert (
        parts(each).parts[name] + parts(each).hidden[name]
        > parts(once).parts[name] + parts(once).hidden[name]
    )
    reduced = replace(once, exchange=Exchange(all_reduce=True, gathers_late=True))
    assert parts(reduced).parts[name] > parts(once).parts[name]
