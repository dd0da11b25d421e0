"""Precisions that a device or a model cannot have are refused with their reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.plan import DeviceFacts, Known, Plan, resolve_plan
from llmkit.plan.precision import choose_precision
from llmkit.precision import PRECISIONS
from tests.program import make_project

CPU = DeviceFacts()
HOPPER = DeviceFacts("cuda", True, 80 * 2**30, capability=(9, 0), triton=True)
FITS = ["train.precision=fp8", "model.hidden_size=64", "kernels.compile=true"]


@pytest.fixture
def planned(tmp_path):
    def make(device: DeviceFacts | None, *overrides: str, processes: int = 1) -> Plan:
        known = Known(processes, tokenizer_size=257, device=device)
        return resolve_plan(load(make_project(tmp_path), [*FITS, *overrides]), known)

    return make


@pytest.mark.parametrize("units", [False, True])
def test_auto_is_bf16_where_there_are_units_for_it_and_never_fp8(units):
    device = replace(HOPPER, has_bf16_units=units)
    assert choose_precision("auto", device) == PRECISIONS["bf16" if units else "fp32"]
    assert choose_precision("auto", None) == PRECISIONS["fp32"]


@pytest.mark.parametrize("device", [HOPPER, CPU, None, replace(HOPPER, capability=(8, 9))])
def test_fp8_is_bf16_with_other_products_of_the_blocks(planned, device):
    plan = planned(device)
    assert plan.precision == replace(PRECISIONS["bf16"], name="fp8", linear="fp8")
    assert plan.kernels.operators["linear"].form == "fp8"
    assert plan.to_json()["number_types"]["linear"] == "fp8"
    other = planned(device, "train.precision=bf16")
    assert (other.state, other.kernels.operators["linear"].form) == (plan.state, "torch")
    assert any("slower" in note for note in plan.kernels.notes) == (device is CPU)
    uncompiled = planned(device, "kernels.compile=false").kernels.notes
    assert any("without torch.compile" in note for note in uncompiled) == (device not in (CPU, None))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp8_goes_with_every_engine(planned, stage):
    plan = planned(HOPPER, f"parallel.zero_stage={stage}", processes=2)
    assert plan.kernels.operators["linear"].form == "fp8"


@pytest.mark.parametrize(
    ("device", "overrides", "processes", "reason"),
    [
        (replace(HOPPER, capability=(8, 6)), [], 1, "capability 8.9 or newer, and this one has 8.6"),
        (replace(HOPPER, capability=None), [], 1, "8.9 or newer, and this one has none that NVIDIA gives"),
        (None, ["model.hidden_size=72"], 1, "multiples of 16, and there are: model.hidden_size 72"),
        (CPU, ["model.intermediate_size=120"], 1, "there are: model.intermediate_size 120"),
        (
            HOPPER, ["parallel.tensor_parallel_size=2", "model.head_dim=12"], 2,
            "on each of 2 tensor-parallel ranks: query heads x head_dim 24",
        ),
    ],
)  # fmt: skip
def test_what_fp8_cannot_have_is_refused_with_the_place(planned, device, overrides, processes, reason):
    with pytest.raises(UserError) as caught:
        planned(device, *overrides, processes=processes)
    (line,) = [line for line in str(caught.value).splitlines() if "train.precision" in line]
    assert line.strip().startswith('command line: train.precision "fp8" (command line): it needs')
    assert reason in line


def test_a_form_that_contradicts_the_precision_is_refused(planned):
    with pytest.raises(UserError, match=r'operators.linear "torch" .*: train.precision is fp8'):
        planned(HOPPER, "kernels.operators.linear=torch")
    with pytest.raises(UserError, match=r'operators.linear "fp8" .*; set train.precision=fp8'):
        planned(HOPPER, "kernels.operators.linear=fp8", "train.precision=bf16")
