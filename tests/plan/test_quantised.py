"""A base in 8 or 4 bits: chosen by its setting, counted in bytes, and refused where it cannot be."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from tests.shapes import LLAMA_STYLE

ROOT = Path(__file__).parents[2]
EVEN = replace(LLAMA_STYLE, num_attention_heads=4, head_dim=32, intermediate_size=256)
NO_NF4 = DeviceFacts(nf4_missing="bitsandbytes is not installed (pip install 'llmkit[quantize]')")


CPU = DeviceFacts()


def planned(
    form: str, device: DeviceFacts = CPU, precision: str = "bf16", shape: ModelShape = EVEN, **sections: Any
) -> Plan:
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 24},
        "train": {
            "max_steps": 3, "global_batch_size": 8, "precision": precision, "init_from": "weights",
            "lora": {"rank": 2, "quantize_base": form},
        },
        **sections,
    }  # fmt: skip
    return plan_for_shape(shape, settings, device)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_the_form_of_the_linear_layers_follows_from_the_setting(form: str) -> None:
    choice = planned(form).kernels.operators["linear"]
    assert (choice.form, choice.reason) == (form, f"train.lora.quantize_base {form}")
    assert planned("none").kernels.operators["linear"].form == "torch"
    avx512 = replace(DeviceFacts(), has_bf16_units=True, avx512_bf16=True)
    assert planned(form, avx512).kernels.operators["linear"].form == form


@pytest.mark.parametrize(("form", "bytes_each"), [("none", 2), ("int8", 1 + 4 / 64), ("nf4", 0.5 + 4 / 64)])
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_bytes_are_those_of_codes_and_scales_on_every_data_parallel_rank(
    form: str, bytes_each: float, stage: int, ranks: int
) -> None:
    shape = replace(EVEN, hidden_size=64)
    layout = {"world_size": 2 * ranks, "zero_stage": stage, "tensor_parallel_size": ranks}
    plan = planned(form, shape=shape, parallel=layout)
    linear = sum(prod(tensor.shape) for tensor in shape.tensors if tensor.linear)
    plain = planned("none", shape=shape, parallel=layout)
    before, shared = 2.0 * linear, 2 if stage == 3 else 1
    after = linear * bytes_each if form != "none" else before / shared
    assert plain.state.device - plan.state.device == pytest.approx((before / shared - after) / ranks, abs=3)


def test_rows_that_are_no_whole_blocks_are_filled_up() -> None:
    rows = {tensor.shape[1] for tensor in LLAMA_STYLE.tensors if tensor.linear}
    assert rows == {48, 60, 72}
    linear = sum(t.shape[0] * (128 if t.shape[1] == 72 else 64) for t in LLAMA_STYLE.tensors if t.linear)
    state = planned("int8", shape=LLAMA_STYLE).state
    plain = planned("none", shape=LLAMA_STYLE).state
    saved = 2 * sum(prod(tensor.shape) for tensor in LLAMA_STYLE.tensors if tensor.linear)
    assert plain.device - state.device == saved - linear - 4 * linear // 64


@pytest.mark.parametrize(
    ("form", "changes", "what"),
    [
        ("nf4", {"device": NO_NF4}, r"quantize_base \"nf4\" .*: bitsandbytes is not installed"),
        ("nf4", {"precision": "fp8"}, r"quantize_base \"nf4\" .* does not go with train.precision \"fp8\""),
        (
            "int8", {"parallel": {"world_size": 4, "tensor_parallel_size": 4}},
            r"multiples of 64 on each of the 4 tensor-parallel ranks.* query heads x head_dim 32",
        ),
        (
            "int8", {"kernels": {"operators": {"linear": "torch"}}},
            "kernels.operators.linear.* train.lora.quantize_base is int8, and this form is not",
        ),
        (
            "none", {"kernels": {"operators": {"linear": "nf4"}}},
            r"train.lora.quantize_base does not ask for it; set train.lora.quantize_base=nf4",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(form: str, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        planned(form, **changes)


def test_8_bits_need_no_package() -> None:
    assert planned("int8", NO_NF4).kernels.operators["linear"].form == "int8"


def test_an_8b_model_fits_a_gpu_of_24_gb(tmp_path: Path) -> None:
    """The figures of docs/finetuning.md."""
    page = (ROOT / "docs/finetuning.md").read_text()
    (example,) = re.findall(r"```yaml\n(extends: \S+\nrun: {name: llama-8b-qlora}.*?)```", page, re.DOTALL)
    written = yaml.safe_load(example)
    (tmp_path / "run.yaml").write_text(
        f"extends: {ROOT}/configs/models/llama-3.1-8b.yaml\n"
        "data: {sources: [{type: stdlib}], sequence_length: 2048, tokenizer: {type: bytes}}\n"
        "train: {max_steps: 1}\nrun: {name: shape}\n"
    )
    shape = resolved_model(load(tmp_path / "run.yaml").config, 128256)
    assert isinstance(shape, ModelShape)
    gpu = DeviceFacts(
        "cuda", has_bf16_units=True, free_bytes=23 * 2**30, capability=(8, 9), triton=True, varlen=True
    )
    found = {}
    for form in ("none", "int8", "nf4"):
        train = written["train"] | {"lora": written["train"]["lora"] | {"quantize_base": form}}
        settings = {name: written[name] for name in ("data", "optimizer", "parallel")} | {"train": train}
        plan = plan_for_shape(shape, settings, gpu)
        found[form] = plan, plan.state.device / 2**30
    for (_, gib), shown in zip(found.values(), ("15.7", "9.6", "6.3"), strict=True):
        assert f"{gib:.1f}" == shown and f"{shown} GiB" in page
    assert f"micro-batches of {found['nf4'][0].micro_batch_size} rows" in page
