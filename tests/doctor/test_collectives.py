"""Collectives by processes of their own: an end where others do not come (all well: test_command.py)."""

from __future__ import annotations

from llmkit.doctor.collectives import Ranks, collectives_finding, local_findings
from llmkit.doctor.scope import Scope
from llmkit.ports import free_port


def test_a_rank_whose_others_do_not_come_says_so_and_is_ended() -> None:
    with Ranks(1) as ranks:
        assert ranks.wait(600.0)
        (result,) = ranks.join("127.0.0.1", free_port(), 0, 2, seconds=1.0)
    assert "error" in result and "rate" not in result
    found = collectives_finding([result], "over 2 processes")
    assert found.state == "fail" and "firewall" in found.advice
    assert all(process.returncode is not None for process in ranks._processes)


def test_what_ranks_have_measured_is_one_finding() -> None:
    results = [{"backend": "nccl", "rate": 1e11 * rank, "joined": rank / 2} for rank in (1, 2, 3)]
    found = collectives_finding(results, "on this machine")
    assert (found.state, found.value) == ("ok", "nccl on this machine: 200.00 GB/s, joined in 1.5 s")
    mixed = collectives_finding([*results, *[{"error": "DistError: timeout"}] * 2], "")
    assert (mixed.state, mixed.value) == ("fail", "DistError: timeout")


def test_one_node_of_many_without_gpus_is_not_asked() -> None:
    assert list(local_findings(Scope(".", meeting="some"))) == []
