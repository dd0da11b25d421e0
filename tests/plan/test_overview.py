"""The few lines of a plan that a start shows, and `llmkit config`."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.config.load import Loaded
from llmkit.config.memory import show_bytes
from llmkit.config.schema import Config
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, Known, Plan, resolve_plan
from llmkit.plan.overview import activation_bytes, layout_text, minutes, overview, schedule
from llmkit.plan.text import show_plan

GPU = DeviceFacts(kind="cuda", has_bf16_units=True, triton=True, free_bytes=2**36)


def plan(known: Known | None = None, **sections: Any) -> Plan:
    data = {"sources": [{"type": "stdlib"}], "sequence_length": 128, **sections.pop("data", {})}
    train = {"max_steps": 9, "global_batch_size": 32, **sections.pop("train", {})}
    return resolve_plan(Loaded.of(Config.model_validate({"data": data, "train": train, **sections})), known)


def lines(known: Known | None = None, **sections: Any) -> dict[str, str]:
    """By name; what belongs to the line before follows it after a semicolon."""
    found: dict[str, str] = {}
    for name, text in overview(plan(known, **sections)):
        if name:
            found[name] = text
        else:
            found[next(reversed(found))] += f"; {text}"
    return found


def test_all_is_there_once_everything_is_known() -> None:
    found = lines(Known(1, tokenizer_size=1000, device=GPU))
    assert list(found) == ["model", "layout", "step", "memory", "kernels"]
    assert found["layout"] == "1 process"
    assert found["step"].startswith("32 sequences of 128 tokens = 4,096 tokens, in micro-batches of 32")
    assert "vocabulary 1,000" in found["model"]
    assert found["kernels"].startswith("torch.compile; sdpa: attention; triton: head_loss; plain PyTorch: ")


def test_memory_is_the_sum_of_its_parts() -> None:
    made = plan(Known(4, tokenizer_size=1000, device=GPU), parallel={"zero_stage": 1})
    state, activations = made.state, activation_bytes(made)
    assert activations is not None
    assert state.weights + state.gradients + state.optimizer == state.total
    assert dict(overview(made))["memory"] == (
        f"{show_bytes(state.total + activations)} a process: weights {show_bytes(state.weights)} + gradients "
        f"{show_bytes(state.gradients)} + optimizer {show_bytes(state.optimizer)} + activations up to "
        f"{show_bytes(activations)}"
    )


@pytest.mark.parametrize("stage", [1, 3])
def test_what_offloading_keeps_on_the_host_is_told(stage: int) -> None:
    made = plan(Known(2, tokenizer_size=1000), parallel={"zero_stage": stage, "offload": "cpu"})
    state = made.state
    assert state.optimizer > 0 and state.weights > 0
    memory = dict(overview(made))["memory"]
    assert memory.endswith(f"; {show_bytes(state.host)} of it on the host")
    assert ", and activations a process" in memory


def test_before_a_start_what_is_not_known_is_said_to_come() -> None:
    found = lines(data={"tokenizer": {"type": "file", "path": "tokenizer.json"}})
    assert found["model"] == "its size is known once the tokenizer is loaded"
    assert found["memory"] == "known once the tokenizer is loaded"
    assert found["step"].endswith("the micro-batch is chosen at start")
    assert found["kernels"] == "chosen at start"


def test_micro_batches_accumulation_ranks_and_rows_that_only_fill_are_told() -> None:
    four = lines(Known(2, device=GPU), train={"micro_batch_size": 4})
    assert four["step"].endswith("in micro-batches of 4, 4 one after the other, on 2 ranks")
    three = lines(Known(3, device=GPU), train={"micro_batch_size": 11})
    assert three["step"].endswith("; 1 of 33 rows only fill, as the ranks do not divide them")


def test_why_fast_kernels_are_off_is_told() -> None:
    def kernels(device: DeviceFacts, **asked: Any) -> str:
        return lines(Known(1, tokenizer_size=1000, device=device), kernels=asked)["kernels"]

    assert "no Triton kernels: Triton is not installed" in kernels(
        DeviceFacts(kind="cuda", has_bf16_units=True, triton=False, free_bytes=2**36)
    )
    assert "no Triton" not in kernels(GPU)
    assert "no Triton kernels: kernels.backend is torch" in kernels(GPU, backend="torch")
    plain = DeviceFacts(compiler_missing="there is no C++ compiler")
    assert "training without torch.compile: there is no C++ compiler" in kernels(plain)
    assert "no torch.compile (as given)" in kernels(GPU, compile=False)
    assert "no AVX-512 kernels: this form is for bf16" in kernels(plain)
    quick = DeviceFacts(has_bf16_units=True, avx512_bf16=True)
    assert "avx512: linear, attention, head_loss, muon" in kernels(quick)
    assert "no AVX-512 kernels: they are chosen with torch.compile" in kernels(quick, compile=False)


def test_adapters_and_recomputation_are_told() -> None:
    found = lines(
        Known(8, tokenizer_size=1000),
        train={"lora": {"rank": 4}, "init_from": "base"},
        parallel={"tensor_parallel_size": 2, "activation_checkpointing": "full"},
    )
    assert found["model"].endswith(" of adapters are trained")
    assert found["layout"] == (
        "8 processes: data parallel x 4, tensor parallel x 2; full activation checkpointing in every block"
    )
    assert layout_text(Layout(2, zero_stage=3, engine="deepspeed")) == "2 processes: ZeRO-3 x 2 (DeepSpeed)"


def test_saves_and_evaluations_are_told() -> None:
    sections = {"checkpoint": {"every_steps": 1, "keep_last": 2}, "evaluate": {"every_steps": 2000}}
    assert dict(schedule(plan(**sections).config)) == {
        "saves": "every step, every 30 minutes and at the end; the newest 2 are kept",
        "evaluates": "every 2,000 steps and at the end",
    }
    kept = {"checkpoint": {"keep_every": 500, "keep_best": True}}
    assert dict(schedule(plan(**kept).config))["saves"].endswith(
        "; the newest 3, one every 500 steps and the best one are kept"
    )
    assert [minutes(count) for count in (1.0, 2.5, 30.0)] == ["1 minute", "2.5 minutes", "30 minutes"]
    never = {"checkpoint": {"every_steps": 0, "every_minutes": 0.0}}
    assert dict(schedule(plan(**never).config))["saves"].startswith("at the end; ")
    assert dict(schedule(plan(**never).config))["evaluates"] == "at the end"


def test_llmkit_config_has_the_same_lines() -> None:
    made = plan(Known(2, tokenizer_size=1000, device=GPU))
    shown = [line.removeprefix("#").strip() for line in show_plan(made).splitlines()]
    begin = shown.index("plan:") + 1
    wanted = [f"{name:<9}  {text}".strip() for name, text in [*overview(made), *schedule(made.config)]]
    assert shown[begin : begin + len(wanted)] == wanted
