"""Runs that a bad record of a live source ended, and what they go on with."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.config import schema
from llmkit.errors import UserError
from tests.data.live.fakes import REFUSE, live
from tests.data.test_loader import Job
from tests.data.toy import ToyRows, toy

DOCUMENTS = [[f"{chr(97 + k)}{unit}xyz" for k in range(20)] for unit in range(4)]
DOCUMENTS[1][17] = DOCUMENTS[3][19] = REFUSE


def data(errors: str) -> tuple[Any, schema.Data]:
    return toy({"a": ToyRows(300), "web": live(DOCUMENTS, errors=errors)})


def ended_at_a_bad_record() -> Job:
    """A run under data.errors: raise, with all steps that could be made."""
    job = Job(data("raise"), 2, 2)
    with pytest.raises(UserError, match=r"or set data\.errors to skip"):
        while True:
            job.run(1, 1)
    assert job.done > 3
    return job


@pytest.mark.parametrize("errors", ["skip", "replace"])
def test_a_run_that_ended_at_a_bad_record_goes_on_without_it(errors: str) -> None:
    straight = Job(data(errors), 2, 2).run(1, 60)
    job = ended_at_a_bad_record()
    done, strict = job.done, job.state
    job.data = data(errors)
    assert job.run(2, 60 - done) == straight[done:]
    assert strict is not None
    assert job.state is not None
    assert job.state["changes"] == []
    assert "strict_digest" not in job.state["fingerprint"]["sources"][1]
    assert job.state["fingerprint"] != strict["fingerprint"], "what is left out from here on is not raised"
    job.data = data("raise")  # which does not know what was left out before
    with pytest.raises(UserError, match=r"source web has other files, or they are cut, read \(data.errors"):
        job.run(1, 1)


def test_without_another_setting_it_ends_there_again() -> None:
    job = ended_at_a_bad_record()
    with pytest.raises(UserError, match="it ends too soon"):
        job.run(1, 1)


def test_where_other_data_begin_the_source_goes_on_too() -> None:
    job = ended_at_a_bad_record()
    assert job.state is not None
    [_, cursors] = job.state["cursors"]
    job.data = toy({"new": ToyRows(500, 1000), "web": data("skip")[0].sources[1].live})
    job.run(1, 0, allow_change=True)
    assert (job.state["shuffle_ids"], job.state["cursors"][1]) == ([2, 1], cursors)
