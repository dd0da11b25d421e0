"""Which cases of a module are run: a fixture that runs many of them in one launch need not run the others."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def chosen(request: pytest.FixtureRequest, name: str) -> list[Any]:
    """Values of the parameter `name` in the selected tests of the module of a fixture, each once."""
    found = []
    for item in request.session.items:
        if item.path == request.path and hasattr(item, "callspec") and name in item.callspec.params:
            found.append(item.callspec.params[name])
    return list(dict.fromkeys(found))


def few_at_every_commit(values: Iterable[Any], always: Container[Any]) -> list[Any]:
    """Values of a parameter, of which `make test` tries those in `always` and `make test-all` all."""
    return [
        pytest.param(each, marks=[] if each in always else pytest.mark.exhaustive, id=str(each))
        for each in values
    ]
