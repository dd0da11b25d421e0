"""What a rank computes: shapes of products, bytes that are moved, FLOPs of Muon."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import L8, nanochat, with_update
from llmkit.config.shape import ModelShape
from llmkit.estimate.computing import (
    Computing,
    attention_flops,
    computing,
    linear_shapes,
    newton_schulz_flops,
    pointwise_bytes,
    seen_keys,
    update_seconds,
)
from llmkit.estimate.rates import Linear
from llmkit.estimate.workload import Adapter, Update, Workload, workload_of
from llmkit.model.gpt import GPT
from llmkit.model.lora import add_adapters
from llmkit.model.positions import BlockInputs
from llmkit.model.rope import rope_tables
from llmkit.plan import DeviceFacts, plan_for_shape
from tests.shapes import LLAMA_STYLE

WORK = with_update(Workload(L8, 4096, 8, 1, micro_batch=2))


class OneFlopASecond:
    """Seconds are FLOPs of products and attention, and bytes that are moved."""

    waits = False

    def linear(self, tokens: float, outputs: float, inputs: float, number_type: str) -> Linear:
        return Linear(*[2.0 * tokens * outputs * inputs] * 3)

    def product(self, rows: float, columns: float, inner: float, number_type: str) -> float:
        return 2.0 * rows * columns * inner

    def attention(self, flops: float, head_dim: int, length: float, form: str, backward: bool) -> float:
        return flops

    def pointwise(self, size: float) -> float:
        return size

    def loss(self, logits: float, size: float) -> float:
        return logits * size

    updated = accumulated = loss

    def launched(self, kernels: float) -> float:
        return kernels


def found(work: Workload) -> Computing:
    return computing(work, OneFlopASecond())


def test_products_are_six_flops_a_parameter_and_token() -> None:
    blocks = L8.num_block_parameters - 2 * 32 * 4096  # without norms
    assert found(WORK).matmul.total == pytest.approx(6 * blocks * 8192)
    assert found(WORK).matmul.forward == pytest.approx(2 * blocks * 8192)
    assert found(WORK).of_weights == pytest.approx(2 * blocks * 8192)
    assert found(WORK).head.total == pytest.approx(6 * 128256 * 4096 * 8192)
    assert found(replace(WORK, tensor=4)).matmul.total == pytest.approx(6 * blocks * 8192 / 4)
    frozen = found(replace(WORK, adapters=(Adapter(4096, 1024, 8, 32), Adapter(100, 200, 8, 3))))
    adapters = 8 * (32 * (4096 + 1024) + 3 * (100 + 200))
    assert frozen.matmul.total == pytest.approx((4 * blocks + 6 * adapters) * 8192)
    assert frozen.of_weights == pytest.approx(2 * adapters * 8192)
    assert frozen.head.total == pytest.approx(4 * 128256 * 4096 * 8192)


@pytest.mark.parametrize("targets", [None, ["*_proj"], ["q_proj", "v_proj"], ["down_proj"]])
def test_products_of_a_block_are_those_that_pytorch_counts(targets: list[str] | None) -> None:
    """Forward and backward of one of our blocks, with adapters and without, by PyTorch's counter of FLOPs."""
    shape = replace(LLAMA_STYLE, num_hidden_layers=1)
    lora = {} if targets is None else {"rank": 3, "targets": targets}
    data = {"sources": [{"type": "stdlib"}], "sequence_length": 32}
    train = {"max_steps": 1, "precision": "fp32", "micro_batch_size": 2, "global_batch_size": 2}
    train |= {"lora": lora, "init_from": "x"} if lora else {}
    plan = plan_for_shape(shape, {"data": data, "train": train}, DeviceFacts())
    work = workload_of(plan)
    assert work is not None
    model = GPT(shape)
    if lora:
        add_adapters(model, plan.config.train.lora)
        counted = sum(each.numel() for each in model.parameters() if each.requires_grad)
        assert work.trained == counted == plan.num_trained
    x = torch.randn(2, 32, shape.hidden_size, requires_grad=True)
    inputs = BlockInputs(rope_tables(32, shape.rotary_dim, shape.rope_theta))
    with FlopCounterMode(display=False) as counter:
        model.blocks[0](x, inputs).sum().backward()
    linear = ("mm", "addmm", "bmm")
    flops = sum(
        n for name, n in counter.get_flop_counts()["Global"].items() if str(name).split(".")[-1] in linear
    )
    assert found(work).matmul.total == pytest.approx(flops)


def test_attention_needs_what_is_seen() -> None:
    forward = 4 * 32 * 4096 * 8192 * 4097 / 2
    assert found(WORK).attention.forward == pytest.approx(forward)
    assert found(WORK).attention.backward == pytest.approx(2.5 * forward)


@pytest.mark.parametrize(
    ("length", "window", "keys"), [(5, None, 3.0), (5, 2, 1.8), (5, 9, 3.0), (1, 1, 1.0)]
)
def test_keys_that_a_position_sees(length: int, window: int | None, keys: float) -> None:
    counted = sum(min(position + 1, window or length) for position in range(length)) / length
    assert seen_keys(length, window) == pytest.approx(counted)
    assert counted == pytest.approx(keys)


def test_windows_limit_what_attention_computes() -> None:
    work = Workload(nanochat(12), 2048, 8, 1, forms={"attention": "flash3"})
    keys = 9 * seen_keys(2048, 1024) + 3 * seen_keys(2048, None)
    assert attention_flops(work) == pytest.approx(4 * 2048 * 768 * keys)
    assert found(work).attention.total == pytest.approx(3.5 * attention_flops(work))


def test_recomputation_repeats_the_forward_pass_of_its_blocks() -> None:
    full = found(replace(WORK, recompute="full"))
    assert full.layers.again == pytest.approx(full.layers.forward)
    half = found(replace(WORK, recompute="full", recompute_every=2))
    assert half.layers.again == pytest.approx(full.layers.again / 2)
    selective = found(replace(WORK, recompute="selective"))
    assert selective.layers.again == pytest.approx(selective.pointwise.forward)


def test_pointwise_traffic_of_llama_and_of_what_is_not_fused() -> None:
    forward, backward = pointwise_bytes(WORK)
    width, inner, rotated = 4096, 14336, 4096 + 1024
    assert forward == 8192 * 2 * (8 * width + 3 * inner + 2 * rotated)
    assert backward == 8192 * 2 * (8 * width + 5.5 * inner + 2 * rotated)
    assert pointwise_bytes(replace(WORK, fused=False))[0] == pytest.approx(2.5 * forward)
    triton = replace(WORK, fused=False, forms={"norm": "triton"})
    assert pointwise_bytes(triton)[0] == pytest.approx(1.3 * forward)
    assert pointwise_bytes(replace(WORK, value_bytes=4))[0] == pytest.approx(2 * forward)
    assert pointwise_bytes(replace(WORK, linear="fp8"))[0] > forward


def test_shapes_of_products_are_those_of_the_model() -> None:
    shape = ModelShape(100, 128, 64, 2, 4, 2, 24, 160, 32)
    work = Workload(shape, 32, 1, 1)
    assert list(linear_shapes(work)) == [(4 * 24 + 2 * 2 * 24, 64), (64, 96), (320, 64), (64, 160)]


def test_the_update_moves_what_it_reads_and_writes() -> None:
    work = replace(WORK, update=Update(1000.0))
    assert update_seconds(work, OneFlopASecond()) == pytest.approx(1000 * 38)
    shared = replace(work, world=8, rows=8, zero=1)
    assert update_seconds(shared, OneFlopASecond()) == pytest.approx(1000 * 38 / 8)
    fp32 = replace(work, value_bytes=4)
    assert update_seconds(fp32, OneFlopASecond()) == pytest.approx(1000 * 36)
    muon = replace(work, update=Update(1000.0, 1.0, ((10, 20), (20, 10))))
    assert update_seconds(muon, OneFlopASecond()) == pytest.approx(
        1000 * 30 + 2 * newton_schulz_flops((10, 20))
    )
    averaged = replace(work, update=Update(1000.0, ema=True))
    assert update_seconds(averaged, OneFlopASecond()) == pytest.approx(1000 * 50)
    assert update_seconds(replace(work, update=None), OneFlopASecond()) == 0.0


def test_adapters_and_a_base_in_few_bits_move_more_bytes() -> None:
    forward, backward = pointwise_bytes(WORK)
    adapted = replace(WORK, adapters=(Adapter(100, 200, 8, 16),))  # every second layer has one
    assert pointwise_bytes(adapted)[0] - forward == 8192 * 2 * 3 * 100 / 2
    assert pointwise_bytes(adapted)[1] - backward == 8192 * 2 * 3 * 200 / 2
    weights = sum(outputs * inputs for outputs, inputs in linear_shapes(WORK))
    for form, each in (("int8", 1 + 4 / 64 + 10), ("nf4", 0.5 + 4 / 64 + 2)):
        few = pointwise_bytes(replace(WORK, forms={"linear": form}))
        assert few == pytest.approx((forward + each * weights, backward + each * weights))


def test_newton_schulz_is_three_products_five_times() -> None:
    small, large = 10, 20
    each = 2 * small * large * small + 2 * small**3 + 2 * small * small * large
    assert newton_schulz_flops((small, large)) == newton_schulz_flops((large, small)) == 5 * each
