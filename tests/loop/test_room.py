"""A run that cannot fit into memory is refused by the figures, per process and per machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.loop import room
from llmkit.loop.room import require_disk, require_memory
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from llmkit.run_folder import RunFolder
from tests.program import make_project
from tests.shapes import LLAMA_STYLE

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SHAPE = replace(LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
N = SHAPE.num_parameters


def planned(precision: str) -> Plan:
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 32},
        "train": {"max_steps": 1, "precision": precision},
    }
    return plan_for_shape(SHAPE, settings, DeviceFacts())


@pytest.fixture
def fits(tmp_path, monkeypatch):
    """Whether a layout fits into so many bytes a parameter of the machine, and of a GPU."""
    loaded, plan = load(make_project(tmp_path)), planned("bf16")

    def check(layout, device, host, gpu=0.0, local_size=1):
        monkeypatch.setattr(room, "host_memory", lambda: int(host * N) + 9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, int(gpu * N) + 9))
        try:
            require_memory(loaded, replace(plan, layout=layout), device, local_size)
        except UserError as error:
            return str(error)
        return ""

    return check


def test_processes_on_cpus_share_the_machine(fits):
    assert fits(Layout(), CPU, 18) == ""
    assert "18 bytes a parameter in bf16" in fits(Layout(), CPU, 17.9)
    assert fits(Layout(world_size=2), CPU, 36, local_size=2) == ""
    assert "for the 2 processes on this machine" in fits(Layout(world_size=2), CPU, 35.9, local_size=2)


def test_a_gpu_is_its_process_s_own(fits):
    zero3 = Layout(world_size=2, zero_stage=3)
    assert fits(zero3, GPU, 0, gpu=9, local_size=2) == ""
    assert "for a process, on a GPU" in fits(zero3, GPU, 0, gpu=8.9, local_size=2)


def test_what_is_offloaded_needs_the_machine_s_memory(fits):
    offload = Layout(world_size=2, zero_stage=1, offload="cpu")
    assert fits(offload, GPU, 12, gpu=2, local_size=2) == ""
    assert "for a process, on a GPU" in fits(offload, GPU, 12, gpu=1.9, local_size=2)
    assert "for the 2 processes on this machine" in fits(offload, GPU, 11.9, gpu=2, local_size=2)


def test_where_memory_is_unknown_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "host_memory", lambda: None)
    require_memory(load(make_project(tmp_path)), planned("fp32"), CPU, 1)


@pytest.mark.parametrize(("saved", "copies"), [(0, 3), (1, 2), (5, 1)])
def test_the_disk_must_have_room_for_what_is_kept_and_one_more(tmp_path, monkeypatch, saved, copies):
    loaded, needed = load(make_project(tmp_path), ["checkpoint.keep_last=2"]), []
    monkeypatch.setattr(RunFolder, "require_space", lambda self, size: needed.append(size))
    with RunFolder.open(tmp_path / "run", "test") as folder:
        for step in range(saved):
            (folder.checkpoints / f"step-{step:08d}").mkdir()
        require_disk(loaded, planned("bf16"), folder)
    assert loaded.config.optimizer.name == "adamw"
    assert needed == [12 * N * copies]
