"""Memory of a plan by part, against what the settings say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.custom_model import CustomModel
from llmkit.config.load import load
from llmkit.config.parameters import FullTensor
from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.memory import MemoryEstimate, memory_of
from llmkit.plan import DeviceFacts, Known, Plan, resolve_plan
from llmkit.plan.memory import memory
from tests.program import make_project

GIB = 2**30
ROOT = Path(__file__).parents[2]
H100 = Hardware().fleet("h100")
SIZES = (
    "model.hidden_size=768", "model.intermediate_size=3072", "model.num_hidden_layers=12",
    "model.num_attention_heads=12", "model.num_key_value_heads=12", "data.sequence_length=1024",
    "train.global_batch_size=64", "train.micro_batch_size=16", "train.precision=bf16",
)  # fmt: skip


def fleet(gib: float) -> Fleet:
    """One H100 with so much memory."""
    of = Hardware().fleet("h100", 1, 1)
    return replace(of, device=replace(of.device, memory=gib * GIB))


@pytest.fixture
def plan(tmp_path: Any) -> Any:
    def make(world: int = 1, *overrides: str) -> Plan:
        loaded = load(make_project(tmp_path), [*SIZES, *overrides])
        return resolve_plan(loaded, Known(world, None, 257, True, DeviceFacts()))

    return make


def parts(found: MemoryEstimate, where: str = "device") -> dict[str, float]:
    return {term.name: term.value for term in getattr(found, where)}


def test_the_largest_micro_batch_fits_and_the_next_one_does_not(plan: Any) -> None:
    needs = {n: memory_of(plan(1, f"train.micro_batch_size={n}"), fleet(1000)).device_bytes for n in (8, 16)}
    assert needs[8] < needs[16]
    for room, largest in ((needs[8], 8), (needs[8] - 1, 4), (needs[16] - 1, 8), (needs[16], 16)):
        assert memory_of(plan(), fleet(room / GIB)).largest_micro_batch == largest
    nothing = memory_of(plan(), fleet(0.01))
    assert nothing.largest_micro_batch == 0 and nothing.cannot_fit and not nothing.fits


def test_the_parts_are_those_of_the_plan_and_what_a_gpu_takes_beside_them(plan: Any) -> None:
    one = plan(4, "parallel.zero_stage=1", "train.micro_batch_size=4")
    found, needs = memory_of(one, fleet(80)), memory(one)
    named = parts(found)
    assert {name: named[name] for name in ("weights", "gradients", "masters", "moments")} == {
        name: size for name, size in one.state.parts.items() if size
    }
    kinds = {name: size for name, size in named.items() if name.startswith("activations: ")}
    assert sum(kinds.values()) == needs.activation_bytes and "activations: mlp" in kinds
    assert found.fits and named["NCCL"] > 0 and named["CUDA"] > 0
    assert named["fragmentation"] == int(0.08 * needs.activation_bytes)
    assert found.device_bytes == sum(named.values()) and found.least == needs.least < found.device_bytes
    assert all(term.formula and term.source and term.unit == "bytes" for term in found.device + found.host)


def test_what_is_offloaded_is_the_host_s(plan: Any) -> None:
    found = memory_of(plan(2, "parallel.zero_stage=3", "parallel.offload=cpu"), fleet(80))
    host, device = parts(found, "host"), parts(found)
    assert {"weights", "gradients", "masters", "moments", "process"} <= set(host)
    assert not {"weights", "masters", "moments"} & set(device) and "gathered weights" in device
    assert found.host_bytes == sum(host.values())
    one = plan(2, "checkpoint.background=true")
    copied = parts(memory_of(one, fleet(80)), "host")["copy of a checkpoint"]
    share = 12 * one.num_trained // 2
    assert copied == 2 ** math.ceil(math.log2(share)) >= share, "each of the ranks gives its share"
    without = memory_of(plan(2, "checkpoint.background=false"), fleet(80))
    assert "copy of a checkpoint" not in parts(without, "host")


def test_what_lacks_of_a_host_is_told_but_a_copy_may_be_left_out(plan: Any) -> None:
    one = plan(2, "parallel.zero_stage=3", "parallel.offload=cpu", "checkpoint.background=true")
    whole = memory_of(one, fleet(80))
    needed = whole.host_bytes - parts(whole, "host")["copy of a checkpoint"]
    cases = (needed - 1, False, False), (needed, True, False), (whole.host_bytes, True, True)
    for room, fits, copy in cases:
        found = memory_of(one, fleet(80), room)
        assert (found.fits, found.has_copy()) == (fits, copy)
        assert found.missing() == (0.0, max(0.0, needed - room))
    assert memory_of(one, fleet(80), needed).missing(0.5)[1] == needed / 2
    assert memory_of(one, fleet(0.01)).missing()[0] > 0.0


def test_a_process_on_a_cpu_is_in_the_memory_that_it_computes_in(plan: Any) -> None:
    of = fleet(80)
    cpu = replace(of, device=replace(of.device, architecture="cpu"))
    found = memory_of(plan(2, "checkpoint.background=true"), cpu)
    assert not found.host and {"process", "copy of a checkpoint"} <= set(parts(found))
    assert parts(found)["copy of a checkpoint"] == 12 * plan(2).num_trained // 2, "not page-locked"


def test_of_a_registered_model_activations_are_not_known(plan: Any) -> None:
    one = plan()
    other = CustomModel("other", 257, 1024, 10**6, 0, {}, tensors=(FullTensor("w", (10, 10), False, "w"),))
    found = memory_of(replace(one, model=other), fleet(80))
    assert not found.known and found.largest_micro_batch == 0
    assert not [name for name in parts(found) if name.startswith("activations")]


PUBLISHED = {
    "gpt2-124m": 1.9, "gpt2-355m": 5.3, "gpt2-774m": 11.5, "gpt2-1558m": 23.2, "llama-3.2-1b": 18.4,
    "llama-3.2-3b": 47.9, "llama-3.1-8b": 119.7,
}  # fmt: skip
"""GiB of weights, gradients, masters and moments at 16 bytes a parameter; with fp32 gradients it is 18."""
SOURCE = ("data.sources=[{type: stdlib}]", "data.tokenizer.type=bytes")
DATA = (*SOURCE, "train.max_steps=1", "train.precision=bf16")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_state_of_published_models_is_known(name: str) -> None:
    loaded = load(str(ROOT / f"configs/models/{name}.yaml"), DATA)
    one = resolve_plan(loaded, Known(1, None, loaded.config.model.vocab_size, True, facts_of(H100.device)))
    assert one.state.total / GIB * 16 / 18 == pytest.approx(PUBLISHED[name], abs=0.05)


def test_a_published_run_of_another_program_takes_about_as_much() -> None:
    """torchtitan: Llama 8B, two rows of 8,192 tokens on each of 8 H100, FSDP 2, selective activation
    checkpointing, torch.compile: 77.0 GiB at the most, the context not counted; 16 bytes a parameter."""
    layout = ("parallel.zero_stage=3", "parallel.activation_checkpointing=selective")
    batch = ("train.micro_batch_size=2", "train.global_batch_size=16", "data.sequence_length=8192")
    path = str(ROOT / "configs/models/llama-3.1-8b.yaml")
    loaded = load(path, [*DATA, *layout, *batch, "kernels.operators.head_loss=full"])
    known = Known(8, None, loaded.config.model.vocab_size, True, facts_of(H100.device))
    found = parts(memory_of(resolve_plan(loaded, known), H100))
    tensors = sum(size for name, size in found.items() if name not in ("CUDA", "NCCL", "fragmentation"))
    assert tensors / GIB == pytest.approx(77.0, rel=0.1)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/models").iterdir()), ids=lambda path: path.stem)
def test_each_published_model_has_memory_that_is_worth_showing(path: Path) -> None:
    """On as many H100s as its state needs under ZeRO-3, and with its activations recomputed."""
    loaded, size = load(str(path), DATA), 1
    known = Known(1, None, loaded.config.model.vocab_size, True, facts_of(H100.device))
    alone = resolve_plan(loaded, known)
    while 18 * alone.model.num_parameters / size > 40e9:
        size *= 2
    overrides = ["parallel.activation_checkpointing=full", "parallel.zero_stage=3"]
    batch = f"train.global_batch_size={8 * size}", "train.micro_batch_size=1"
    loaded = load(str(path), [*DATA, *overrides, *batch])
    found = memory_of(resolve_plan(loaded, replace(known, world_size=size)), H100)
    assert found.known and found.least < found.device_bytes < 2 * found.available
    assert found.fits, {name: f"{value / GIB:.1f}" for name, value in parts(found).items()}
    assert found.largest_micro_batch >= 1
