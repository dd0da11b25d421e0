"""What a run chooses for its device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.config.load import load
from llmkit.loop.device import choose_micro_batch, choose_precision
from llmkit.parallel.layout import Layout
from tests.program import make_project
from tests.shapes import LLAMA_STYLE

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [(12, 32, 12), (12, 8192, 2), (12, 16384, 1), (7, 8192, 1), (3, 100_000, 1)],
)
def test_automatic_micro_batch_divides_the_batch_and_stays_small_on_a_cpu(tmp_path, rows, length, expected):
    config = load(
        make_project(tmp_path), [f"train.global_batch_size={rows}", f"data.sequence_length={length}"]
    )
    assert choose_micro_batch(config.config, LLAMA_STYLE, "fp32", CPU) == expected


def test_automatic_micro_batch_fits_the_free_memory_of_a_gpu(tmp_path, monkeypatch):
    config = load(make_project(tmp_path), ["train.global_batch_size=64", "data.sequence_length=1024"]).config
    shape = replace(LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    chosen = []
    for free in (1, 8, 80):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 80 * 2**30))
        chosen.append(choose_micro_batch(config, shape, "bf16", torch.device("cuda")))
    assert chosen[0] < chosen[1] < chosen[2] == 64
    assert all(64 % n == 0 for n in chosen)


def test_a_given_micro_batch_is_taken(tmp_path):
    config = load(make_project(tmp_path), ["train.micro_batch_size=2"]).config
    assert choose_micro_batch(config, LLAMA_STYLE, "fp32", CPU) == 2


def test_precision_is_bf16_where_there_are_units_for_it(monkeypatch):
    monkeypatch.setattr("llmkit.loop.device.has_bf16_units", lambda device: True)
    assert choose_precision("auto", CPU) == "bf16"
    monkeypatch.setattr("llmkit.loop.device.has_bf16_units", lambda device: False)
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


def test_automatic_micro_batch_divides_the_rows_of_a_rank(tmp_path):
    config = load(make_project(tmp_path), ["train.global_batch_size=26", "data.sequence_length=4096"]).config
    for layout, expected in ((Layout(world_size=3), 3), (Layout(4, 2), 1), (Layout(world_size=13), 2)):
        assert choose_micro_batch(config, LLAMA_STYLE, "fp32", CPU, layout) == expected


def test_what_is_shared_out_leaves_room_for_larger_micro_batches(tmp_path, monkeypatch):
    config = load(make_project(tmp_path), ["train.global_batch_size=64", "data.sequence_length=1024"]).config
    shape = replace(LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 2**30, 80 * 2**30))
    chosen = [
        choose_micro_batch(config, shape, "bf16", torch.device("cuda"), layout)
        for layout in (Layout(), Layout(activation_checkpointing="full"))
    ]
    assert chosen[0] < chosen[1]
