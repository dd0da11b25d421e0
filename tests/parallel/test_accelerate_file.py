"""Accelerate's files, read as accelerate itself reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.accelerate_file import variables_of
from tests.parallel.accelerate_files import questioned, told_by_accelerate, written
from tests.parallel.test_accelerate import CASES

LAUNCH = sorted((Path(__file__).parents[2] / "launch").glob("*.yaml"))
REFUSED = {
    "fsdp": "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n",
    "megatron": "distributed_type: MEGATRON_LM\nmegatron_lm_config: {megatron_lm_tp_degree: 1}\n",
    "fp16": "distributed_type: MULTI_GPU\nmixed_precision: fp16\n",
    "compiled": "distributed_type: MULTI_GPU\ndynamo_config: {dynamo_backend: INDUCTOR}\n",
    "experts": "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_moe_layer_cls_names: Moe}\n",
    "saved": "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3, zero3_save_16bit_model: true}\n",
    "debug": "distributed_type: MULTI_GPU\ndebug: true\n",
    "file": "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json}\n",
    "clipped": "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1, gradient_clipping: 2.0}\n",
}


@pytest.mark.parametrize("name", CASES)
def test_files_as_accelerate_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    file = questioned(tmp_path, CASES[name][0], monkeypatch)
    assert read_accelerate(variables_of(file)) == read_accelerate(told_by_accelerate(file))


@pytest.mark.parametrize("file", LAUNCH, ids=lambda file: file.stem)
def test_our_own_files(file: Path) -> None:
    told = told_by_accelerate(file, "--num_processes", "4")
    assert read_accelerate(variables_of(file)) == read_accelerate(told)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_or_without_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}')
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, REFUSED[name])
    found = read_accelerate(variables_of(file))
    assert found == read_accelerate(told_by_accelerate(file))
    assert found.mistakes or found.notes or name == "clipped"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        variables_of(tmp_path / "none.yaml")
    (tmp_path / "odd.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match=r"odd\.yaml"):
        variables_of(tmp_path / "odd.yaml")
