"""A term is a plain value: programs and pages show its fields."""

from __future__ import annotations

from dataclasses import asdict

from llmkit.estimate.term import Term


def test_a_term_is_its_fields():
    term = Term("weights", 16e9, "bytes", "8e9 parameters x 2 bytes", "llmkit/config/memory.py")
    assert asdict(term) == {
        "name": "weights", "value": 16e9, "unit": "bytes", "formula": "8e9 parameters x 2 bytes",
        "source": "llmkit/config/memory.py",
    }  # fmt: skip
