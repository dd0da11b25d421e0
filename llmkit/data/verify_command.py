"""`llmkit data verify`: reads all shards of a configuration, and says what was found."""

from __future__ import annotations

import json
from collections.abc import Callable

from llmkit.config.redaction import without_access
from llmkit.data.prepared import PreparedData, verify
from llmkit.errors import UserError


def verify_command(prepared: PreparedData, report: Callable[[str], None], as_json: bool) -> None:
    """Reports a line for each source and split; as_json: also prints an object of all of them at the end.

    Raises UserError at the first file that is damaged; the object then names it as `problem`.
    """
    try:
        found = {"good": True, "problem": None, "sources": verify(prepared, report)}
    except UserError as error:
        if as_json:
            print(json.dumps({"good": False, "problem": without_access(error), "sources": []}, indent=2))
        raise
    if as_json:
        print(json.dumps(found, indent=2))
