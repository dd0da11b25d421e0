"""Options that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import UserError
from llmkit.loop.options import Options


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data_position": "new"}, "--data-position new goes with --from"),
        ({"branch": ""}, "--from is empty"),
        ({"branch": "s3://b/runs@5"}, "llmkit checkpoint fetch URL FOLDER"),
        ({"branch": "a", "data_position": "other"}, "--data-position 'other': is keep or new"),
        ({"branch": "a", "data_position": "new", "allow_data_change": True}, "leave one of them out"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Options(**given)


def test_a_branch_keeps_its_position_by_default() -> None:
    assert not Options(branch="a").begins_data_anew
    assert Options(branch="a", data_position="new").begins_data_anew
