"""Ranks that agree or differ, and what each learns of another one's error."""

from __future__ import annotations

import re

import pytest
import torch.distributed as dist

from llmkit.loop.control import Agreed
from tests.limits import HANG
from tests.ranks import run_ranks


def test_ranks_agree_or_all_learn_what_differs():
    ranks = run_ranks(3, "tests.parallel.world_cases:agreements", joined=False)
    host = ranks[0]["different"].split("rank 1 (")[1].split(")")[0]
    for rank, found in enumerate(ranks):
        assert found["before"] == [rank, 3, "gloo", HANG]
        assert found["same"] == "None"
        assert found["different"] == (
            "UserError: the processes of this run are not the same:\n"
            f"  b: y on rank 0 ({host}) and rank 2 ({host}); x on rank 1 ({host})"
        )
        assert found["all do it"] == "done"
        assert found["one cannot"] == f"UserError: rank 1 ({host}): no such file"
        assert found["none can"] == "UserError: no such file"
        assert found["a fault"] == f"RunFault: rank 2 ({host}): disk full"
        assert found["a mistake beside a fault"] == (f"UserError: rank 0 ({host}) and rank 2 ({host}): wrong")
        if rank == 1:
            assert found["a bug"] == "KeyError: 'oops'"
        else:
            assert found["a bug"].startswith(f"RunFault: rank 1 ({host}): KeyError: 'oops'")
        assert found["texts"] == ["", "é", "éé"]
        assert found["bytes to first"] == (["ff00ff00ff00", "ff00ff00", "ff00"] if rank == 0 else [])
        assert found["from first"] == "ééé"
        assert found["first only"] == "of rank 0"
        assert found["cut"] == [1, rank, 3]
        assert found["left"]
        assert found["same batches"] == "the same"
        assert found["other batches"].startswith(
            "RunFault: the tensor-parallel processes of data rank 0 were given different batches"
        )
        assert found["count"] == 5  # of the one data-parallel rank
        # A step later, the same on all ranks.
        assert [Agreed(*each) for each in found["control"]] == [
            Agreed(unready=1), Agreed(save=1, failed=1), Agreed(evaluate=1, max_steps=102),
            Agreed(stop=2, unready=1), Agreed(),
        ]  # fmt: skip


def test_an_error_of_all_ranks_is_printed_once():
    ranks = run_ranks(3, "tests.parallel.world_cases:end_of_a_world", joined=False, failing=[0, 1, 2])
    assert [found["end"] for found in ranks] == ["told, code 1"] * 3
    assert [found["printed"] for found in ranks] == ["llmkit: the disk is full\n", "", ""]


@pytest.mark.parametrize("finished", [False, True])
def test_an_error_of_a_rank_that_the_first_one_does_not_hear_of_is_not_lost(finished):
    """The first one, which waits for it in its work or at its end, learns of it as it leaves."""
    case = "tests.parallel.world_cases:end_of_a_world"
    first, second = run_ranks(
        2, case, joined=False, may_die=[0, 1], failing=[1], patience=1.0, finished=finished
    )
    assert second["end"].startswith("RunFault: rank 1 (")
    assert second["end"].endswith("): the disk is full")
    assert first["end"] == "told, code 1"
    assert first["printed"].startswith("llmkit: rank 1 (")
    assert first["printed"].endswith("): the disk is full\n")


def test_the_others_notice_at_once_that_a_rank_has_died():
    """Not after one of the limits of time, all of which are longer than the launch may take."""
    first, _ = run_ranks(2, "tests.parallel.world_cases:one_dies", joined=False, may_die=[1])
    assert re.match(r"code 1: llmkit: rank 1 \(.*, process \d+\) ended without reporting an error", first)


def test_where_the_first_rank_fails_alone_the_next_one_tells():
    """The ranks meet in their launcher, as under torchrun: it stays when the first one goes."""
    case = "tests.parallel.world_cases:first_fails"
    launcher = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(launcher.port)}
    first, second, third = run_ranks(3, case, joined=False, may_die=[0, 1, 2], environment=meeting)
    assert first["end"] == "KeyError: 'oops'"
    assert second["end"] == third["end"] == "told, code 1"
    assert second["printed"].startswith("llmkit: rank 0 (")
    assert second["printed"].endswith("KeyError: 'oops' (that rank's output has the traceback)\n")
    assert first["printed"] == third["printed"] == ""
