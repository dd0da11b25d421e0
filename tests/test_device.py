"""What a plan is told of the device."""

from __future__ import annotations

import importlib

import pytest
import torch

from llmkit import device as device_module
from llmkit.config.load import load
from llmkit.device import choose_workers, device_facts
from llmkit.plan import DeviceFacts
from tests.program import make_project

CPU = torch.device("cpu")


def test_the_facts_of_a_cpu(monkeypatch):
    monkeypatch.setattr(device_module, "compiler_missing", lambda device: "no compiler")
    monkeypatch.setattr(device_module, "triton_runs", lambda device: False)
    for units in (False, True):
        monkeypatch.setattr(device_module, "has_bf16_units", lambda device, units=units: units)
        monkeypatch.setattr(device_module, "has_avx512_bf16", lambda units=units: units)
        assert device_facts(CPU) == DeviceFacts("cpu", has_bf16_units=units, avx512_bf16=units)
    assert device_facts(CPU, compiled=True).compiler_missing == "no compiler"


def test_the_free_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9))
    monkeypatch.setattr(device_module, "has_bf16_units", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(device_module, "triton_runs", lambda device: True)
    monkeypatch.setattr(device_module, "flash_packages", lambda: frozenset({"flash3"}))
    for parameters, varlen in ((frozenset({"window_size"}), True), (frozenset(), False)):
        monkeypatch.setattr(device_module, "kernel_parameters", lambda found=parameters: found)
        assert device_facts(torch.device("cuda", 0)) == DeviceFacts(
            "cuda", has_bf16_units=True, free_bytes=5, capability=(9, 0), triton=True, varlen=varlen,
            flash=frozenset({"flash3"}),
        )  # fmt: skip


def test_packages_of_flash_attention_are_found_and_not_imported(tmp_path, monkeypatch):
    """Flash attention 2 has the same package as 4, without its file."""
    monkeypatch.syspath_prepend(str(tmp_path))
    assert device_module.flash_packages() == frozenset()
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    for file, found in (
        ("flash_attn/__init__.py", set()),
        ("flash_attn_interface.py", {"flash3"}),
        ("flash_attn/cute/interface.py", {"flash3", "flash4"}),
    ):
        (tmp_path / file).write_text("raise AssertionError('imported')")
        importlib.invalidate_caches()
        assert device_module.flash_packages() == found
    monkeypatch.delattr(torch.nn.attention, "list_flash_attention_impls")
    assert device_module.flash_packages() == frozenset(), "of an older PyTorch"


def test_triton_runs_on_gpus_that_it_knows_and_elsewhere_in_its_interpreter(monkeypatch):
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda name: object())
    for capability, wanted in (((6, 1), False), ((7, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert device_module.triton_runs(torch.device("cuda", 0)) is wanted
    for value, wanted in (("1", True), ("0", False)):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert device_module.triton_runs(CPU) is wanted
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda name: None)
    assert device_module.triton_runs(CPU) is False


@pytest.mark.parametrize(("asked", "processes", "chosen"), [("3", 9, 3), ("auto", 1, 4), ("auto", 4, 2)])
def test_workers_share_the_cores_of_the_host(tmp_path, monkeypatch, asked, processes, chosen):
    monkeypatch.setattr(device_module, "available_cores", lambda: 16)
    config = load(make_project(tmp_path), [f"data.workers={asked}"]).config
    assert choose_workers(config, processes) == chosen
