"""A run that cannot fit into memory is refused by the figures, per process and per machine."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from llmkit.config.load import load
from llmkit.config.memory import show_bytes
from llmkit.loop import room
from llmkit.loop.room import disk_warning, memory_refusal, memory_warning, require_disk
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from llmkit.plan.memory import memory
from llmkit.run_folder import RunFolder
from tests.program import make_project
from tests.shapes import LLAMA_STYLE

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SHAPE = replace(
    LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, vocab_size=104,
    max_position_embeddings=1024,
)  # fmt: skip
N = SHAPE.num_parameters


def planned(precision: str) -> Plan:
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 32},
        "train": {"max_steps": 1, "precision": precision, "micro_batch_size": 1},
    }
    return plan_for_shape(SHAPE, settings, DeviceFacts())


@pytest.fixture
def fits(tmp_path, monkeypatch):
    """Whether a layout fits into so many bytes a parameter of the machine, and of a GPU."""
    loaded, plan = load(make_project(tmp_path)), planned("bf16")

    def check(layout, device, host, gpu=0.0, local_size=1):
        monkeypatch.setattr(room, "host_memory", lambda: int(host * N) + 9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, int(gpu * N) + 9))
        return memory_refusal(loaded, replace(plan, layout=layout), device, local_size) or ""

    return check


def test_processes_on_cpus_share_the_machine(fits):
    assert fits(Layout(), CPU, 18) == ""
    assert "18 bytes a parameter in bf16" in fits(Layout(), CPU, 17.9)
    assert fits(Layout(world_size=2), CPU, 36.7, local_size=2) == ""
    assert "a step does not fit" in fits(Layout(world_size=2), CPU, 36.1, local_size=2)
    assert "for the 2 processes on this machine" in fits(Layout(world_size=2), CPU, 35.9, local_size=2)


def test_a_gpu_is_its_process_s_own(fits):
    zero3 = Layout(world_size=2, zero_stage=3, engine="deepspeed")
    assert fits(zero3, GPU, 0, gpu=9.4, local_size=2) == ""
    assert "for a process, on a GPU" in fits(zero3, GPU, 0, gpu=8.9, local_size=2)


def test_what_is_offloaded_needs_the_machine_s_memory(fits):
    offload = Layout(world_size=2, zero_stage=1, offload="cpu", engine="deepspeed")
    assert fits(offload, GPU, 16, gpu=2.4, local_size=2) == ""
    assert "for a process, on a GPU" in fits(offload, GPU, 16, gpu=1.9, local_size=2)
    assert "for the 2 processes on this machine" in fits(offload, GPU, 15.9, gpu=2.4, local_size=2)


def test_where_memory_is_unknown_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "host_memory", lambda: None)
    plan = planned("fp32")
    assert memory_refusal(load(make_project(tmp_path)), plan, CPU, 1) is memory_warning(plan, CPU, 1) is None


def test_a_step_that_cannot_fit_is_refused_with_what_should(tmp_path, monkeypatch):
    """By the state with what blocks keep at least; between that and the estimate a warning is all."""
    overrides = ["train.global_batch_size=64", "train.micro_batch_size=32", "data.sequence_length=1024"]
    loaded = load(make_project(tmp_path), overrides)
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 1024},
        "train": {"max_steps": 1, "precision": "bf16", "global_batch_size": 64, "micro_batch_size": 32},
    }
    plan = plan_for_shape(SHAPE, settings, DeviceFacts())
    need = memory(plan)
    assert need.state.total < need.least < 0.95 * need.on_device

    def found(room_bytes, device=GPU):
        monkeypatch.setattr(room, "host_memory", lambda: room_bytes if device == CPU else 2**50)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, room_bytes))
        return memory_refusal(loaded, plan, device, 1), memory_warning(plan, device, 1)

    for device in (CPU, GPU):
        assert found(need.on_device, device) == (None, None)
        refusal, warning = found(need.least, device)
        assert refusal is None and "memory may not do: by estimate a step needs" in warning
        refusal, _ = found(need.least - 1, device)
        assert f"takes at least {show_bytes(need.least)} a process" in refusal
        assert "train.micro_batch_size 32 (command line)" in refusal and "--anyway starts" in refusal
        assert "What should fit: train.micro_batch_size=" in refusal
        assert "offload" not in refusal, "nothing is shared out yet"


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


@pytest.mark.parametrize(
    ("step", "saved", "more"),
    [
        (0, [], 13),  # 10 of steps that 1,000 divides, 2 newest, and one being written
        (5500, [*range(1000, 6000, 1000), 5500], 12 - 5),
        (5500, [5000, 5500], 12 - 5),  # who has moved older ones away has no need of their room again
        (9500, [9000, 9500], 12 - 9),
    ],
)
def test_a_disk_that_what_is_kept_for_good_will_fill_is_told(tmp_path, monkeypatch, step, saved, more):
    changes = ["checkpoint.keep_last=2", "checkpoint.keep_every=1000", "checkpoint.every_steps=500"]
    loaded = load(make_project(tmp_path), [*changes, "train.max_steps=10000"])
    plan, usage = planned("bf16"), shutil.disk_usage(tmp_path)
    with RunFolder.open(tmp_path / "run", "test") as folder:
        for each in saved:
            (folder.checkpoints / f"step-{each:08d}").mkdir()

        def warning(free):
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
            return disk_warning(loaded, plan, folder, step)

        assert warning(12 * N * more) is None
        text = warning(12 * N * more - 1)
    assert f"full before step 10,000: {more} more checkpoints" in text
    assert "raise checkpoint.keep_every 1000 (command line)" in text
