"""Sections take no unknown keys and no values of another type."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmkit.config.section import NonNegative, Positive, Section, Share


class Example(Section):
    """A section."""

    count: Positive = 1
    """How many."""
    seed: NonNegative = 0
    share: Share = 0.5


@pytest.mark.parametrize(
    "values",
    [
        {"cuont": 1},
        {"count": 0},
        {"count": True},
        {"count": "1"},
        {"seed": -1},
        {"share": 1.1},
        {"share": float("nan")},
    ],
)
def test_what_is_not_meant_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(values)


def test_a_section_is_frozen_and_documented_by_its_docstrings() -> None:
    with pytest.raises(ValidationError):
        Example().count = 2  # type: ignore[misc]
    assert Example.model_fields["count"].description == "How many."
