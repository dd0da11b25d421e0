"""The records that cannot be read, of all sources, as a file to mend them by.

A line of JSON each, in the order of the sources and their files:

    {"source": "web", "location": "web/a.jsonl:17", "reason": "broken JSON", "detail": "..."}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from llmkit.data.source import Source
from llmkit.data.sources.records import skipped_summary
from llmkit.errors import UserError

SPLIT_BYTES = 64 << 20
"""What is read at a time."""


def write_rejects(
    sources: Sequence[Source], path: Path, report: Callable[[str], None]
) -> dict[str, Counter[str]]:
    """Reads all sources, and writes their records that cannot be read, as they come; tokenizes nothing.

    Records that only tokenizing refuses, and sources whose tokens were made by others, are not looked at.
    report: gets a line a source. Returns how many there are of each source that was read, by reason.

    Raises UserError where the file is there already, or cannot be written, and
    RunFault where a source cannot be read: what was found until then stays.
    """
    found: dict[str, Counter[str]] = {}
    try:
        with path.open("x", encoding="utf-8") as file:
            for source in sources:
                if source.is_given:
                    report(f"{source.name}: its tokens were made by others, there are no records to read")
                    continue
                counts = found[source.name] = Counter()
                for location, skipped in (source.live_reader or source.reader(SPLIT_BYTES)).skipped():
                    counts[skipped.reason] += 1
                    line = {"source": source.name, "location": location, **skipped._asdict()}
                    file.write(json.dumps(line) + "\n")
                report(f"{source.name}: {skipped_summary(counts) or 'every record can be read'}")
    except FileExistsError as error:
        raise UserError(f"--rejects {path}: is there already; name another file, or remove it") from error
    except OSError as error:
        raise UserError(f"--rejects {path}: cannot be written ({error.strerror or error})") from error
    return found
