"""`llmkit data verify`: reads all shards of a configuration, and says what was found."""

from __future__ import annotations

import json
from collections.abc import Callable

from llmkit.config.redaction import without_access
from llmkit.data.prepared import PreparedData, verify
from llmkit.errors import RunFault, UserError


def verify_command(
    opened: Callable[[], PreparedData], report: Callable[[str], None], as_json: bool
) -> None:
    """Reports a line for each source and split; as_json: also prints an object of all of them at the end.

    opened: opens what is to be read, and may raise the same errors as reading it.
    Raises UserError or RunFault at the first file that is damaged or cannot be read; the object then names
    it as `problem`.
    """
    try:
        found = {"good": True, "problem": None, "sources": verify(opened(), report)}
    except (UserError, RunFault) as error:
        if as_json:
            print(json.dumps({"good": False, "problem": without_access(error), "sources": []}, indent=2))
        raise
    if as_json:
        print(json.dumps(found, indent=2))
