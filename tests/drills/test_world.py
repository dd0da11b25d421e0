"""Mistakes that only several processes can make: one message, from rank 0, exit code 2 on all, no waiting.

A rank that waited for another one would wait for longer than the launch may take (tests/limits.py).
"""

from __future__ import annotations

import json

import pytest

from llmkit.run_folder import RunFolder
from tests.program import make_project
from tests.ranks import free_ports, run_ranks

PLAIN = "run.deterministic=false"
CASES = {
    # name: (the case, what the message says)
    "tensor-parallel": (
        {"overrides": ["parallel.tensor_parallel_size=3"]},
        ["model.num_attention_heads 4 (tiny.yaml:", "parallel.tensor_parallel_size 3 (command line)"],
    ),
    "heads": (
        {"overrides": ["parallel.tensor_parallel_size=2", "model.num_attention_heads=1",
                       "model.num_key_value_heads=1"]},
        ["model.num_attention_heads 1", "parallel.tensor_parallel_size 2"],
    ),
    "world-size": (
        {"overrides": ["parallel.world_size=4"]},
        ["parallel.world_size 4 (command line), but the world that was joined has 2"],
    ),
    "offload": ({"overrides": ["parallel.offload=cpu"]}, ["parallel.offload", "not go with ZeRO stage 0"]),
    "stage": (
        {
            "overrides": ["parallel.zero_stage=0"],
            "environment": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
        },
        ["parallel.zero_stage 0 (command line)", "zero_stage 2 (ACCELERATE_DEEPSPEED_ZERO_STAGE)"],
    ),
    "two-launchers": (
        {
            "environment": {"ACCELERATE_USE_DEEPSPEED": "true"},
            "own_environment": {
                "0": {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
                "1": {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
            },
        },
        ["not the same", "layout.zero_stage: 1 on rank 0 (", "2 on rank 1 ("],
    ),
    "fsdp": ({"environment": {"ACCELERATE_USE_FSDP": "true"}}, ["FSDP", "launch/"]),
    "settings": (
        {"own": {"1": ["train.max_steps=13"]}},
        ["not the same", "train.max_steps: 12 on rank 0 (", "13 on rank 1 ("],
    ),
    "no-file": ({"configs": {"1": "nowhere.yaml"}}, ["rank 1 (", "nowhere.yaml"]),
    "unknown-key": ({"overrides": ["train.max_step=3"]}, ["1 mistake", "did you mean train.max_steps?"]),
    "in-use": ({}, ["is in use by"]),
    "other-data": (
        {"overrides": ["run.dir=FOLDER/runs"], "folders": {"1": "FOLDER/other"}},
        ["not the same", "data source text-0: 11727 tokens", "on rank 1 ("],
    ),
    "no-shared-disk": ({"folders": {"1": "FOLDER/other"}}, ["rank 1 (", "rank 0 has made, is not there"]),
    "left-over": (  # a folder of that name, of an earlier run on that machine alone
        {"folders": {"1": "FOLDER/other"}},
        ["rank 1 (", "/other/runs/left-over is another folder here than on rank 0"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, list[dict]]:
    """What came out of every case, for each of two ranks; all in one launch."""
    folder = tmp_path_factory.mktemp("mistakes")
    make_project(folder)
    make_project(folder / "other")
    (folder / "other" / "corpus" / "000.txt").write_text("another text")
    (folder / "other" / "runs" / "left-over" / "checkpoints").mkdir(parents=True)
    cases = [{"name": name, **case, "overrides": [PLAIN, *case.get("overrides", [])]}
             for name, (case, _) in CASES.items()]  # fmt: skip
    cases = json.loads(json.dumps(cases).replace("FOLDER", str(folder)))
    with RunFolder.open(folder / "runs" / "in-use", "the first run"):
        ranks = run_ranks(
            2, "tests.drills.world_cases:mistakes", joined=False,
            folder=str(folder), ports=free_ports(len(cases)), cases=cases,
        )  # fmt: skip
    return {name: [found[index] for found in ranks] for index, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_once_and_ends_all_ranks(outcomes, name):
    first, second = outcomes[name]
    assert (first["code"], second["code"]) == (2, 2), first["errors"] + second["errors"]
    assert first["errors"].startswith("llmkit: ")
    assert all(part in first["errors"] for part in CASES[name][1]), first["errors"]
    assert "Traceback" not in first["errors"]
    assert second["errors"] == ""


def test_a_rank_that_dies_while_others_wait_is_noticed(tmp_path):
    make_project(tmp_path)
    first, _ = run_ranks(
        2, "tests.drills.world_cases:dies_while_preparing", joined=False, may_die=[1], folder=str(tmp_path)
    )
    assert first["code"] == 1
    assert first["errors"].startswith("llmkit: rank 1 (")
    assert "ended without reporting an error" in first["errors"]
