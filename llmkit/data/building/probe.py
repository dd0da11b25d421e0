"""Opens all sources and looks at their first records, before the first of them costs anything.

So that all that is wrong with any of them is said at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llmkit.config import schema
from llmkit.data.building.given import look_at
from llmkit.data.building.opened import Found, OpenedSource, open_source
from llmkit.data.sources.files import File, is_remote
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import EMPTY, Chat, Preference, Record, Skipped, skipped_summary
from llmkit.data.sources.splits import split_files
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.errors import RunFault, UserError, raise_together

RECORDS = 1024
"""Looked at of a source, at most, until one can be used."""
FILES = 16
"""Evenly spread over a source, whose beginnings are looked at."""
WHOLE_FILE = 1 << 62
"""Bytes of a unit: a file is read from its beginning."""


def find_remote(config: schema.Data) -> dict[str, Found]:
    """The sources that are not on local disks, looked at, by the key of their settings.

    So one process can ask for all of them: stores would not like as many questions as there are processes.
    """
    found = {}
    for number, spec in enumerate(config.sources):
        if is_remote(spec):
            try:
                source = open_source(config, number)
                chats = _is_of_chats(_look_at_records(source))
                units = source.live.splits if source.live else []
                found[source.place] = Found(source.files, units, chats=chats)
            except UserError as error:
                found[f"data.sources.{number}"] = Found([], [], str(error))
    return found


def open_sources(config: schema.Data, known: Mapping[str, Found] | None = None) -> list[OpenedSource]:
    """All sources, in the order of the settings; nothing is asked for of those in `known`.

    Raises UserError where some have no files; it then tells of the others, too, what is wrong with them.
    """
    opened: list[OpenedSource | UserError] = []
    for number in range(len(config.sources)):
        try:
            opened.append(open_source(config, number, (known or {}).get(f"data.sources.{number}")))
        except UserError as error:
            opened.append(error)
    sources = [source for source in opened if isinstance(source, OpenedSource)]
    if len(sources) < len(opened):
        looks = (one if isinstance(one, UserError) else look_at_source(one) for one in opened)
        raise_together(look for look in looks if look)
    return sources


def asks_in_chats(source: OpenedSource, found: Found | None) -> bool:
    """Whether the first pair of a source of preferences is of chats, and not of texts. found: as in `Found`.

    False where there is none that can be used, or it cannot be read: whoever builds the source says that.
    """
    if found is not None:
        return found.chats
    try:
        return _is_of_chats(_look_at_records(source))
    except (UserError, RunFault):
        return False


def _is_of_chats(record: Record | None) -> bool:
    return isinstance(record, Preference) and isinstance(record.chosen, Chat)


def check_sources(sources: Iterable[OpenedSource], encoder: RecordEncoder | None = None) -> None:
    """Raises UserError, or RunFault, that names each source of which nothing can be used.

    encoder: where there is one, a record must also have tokens to learn.
    """
    raise_together(look for source in sources if (look := look_at_source(source, encoder)))


def look_at_source(source: OpenedSource, encoder: RecordEncoder | None = None) -> UserError | RunFault | None:
    """Why a source cannot be used; None if a record of it can, or if more must be read to know."""
    try:
        if source.kind == "given":
            look_at(source.spec, source.name)
        else:
            _look_at_records(source, encoder)
    except (UserError, RunFault) as error:
        return error
    return None


def _look_at_records(source: OpenedSource, encoder: RecordEncoder | None = None) -> Record | None:
    """The first record that can be used; None where more must be read to find one."""
    left_out: Counter[str] = Counter()
    first = ""
    files = _spread(source)
    for file in files:
        units = split_files(source.spec, [file], WHOLE_FILE, source.place)
        reader = SourceReader(source.spec, source.name, source.place, source.errors, [file], units)
        for unit in range(len(units)):
            for candidate in reader.read(unit):
                found: object = candidate.record
                if encoder is not None and not isinstance(candidate.record, Skipped):
                    found = encoder.encode([candidate.record])[0]
                if not isinstance(found, Skipped) and not isinstance(candidate.record, Skipped):
                    return candidate.record
                assert isinstance(found, Skipped)
                left_out[found.reason] += 1
                if not first and found.reason != EMPTY:
                    first = f"{reader.location(unit, candidate.number)}: {found.detail}"
                if left_out.total() >= RECORDS:
                    if not first:  # empty records are none to lose: there may be others behind them
                        return None
                    raise UserError(
                        f"source {source.name}: none of its first {RECORDS:,} records can be used "
                        f"({skipped_summary(left_out)}; {first})"
                    )
    if len(files) == len(source.files):
        what = skipped_summary(left_out) or "its files hold no record"
        raise UserError(
            f"source {source.name}: it has no usable document ({what}{'; ' if first else ''}{first})"
        )
    return None


def _spread(source: OpenedSource) -> Sequence[File]:
    count = len(source.files)
    chosen = min(FILES, count)
    return [source.files[k * count // chosen] for k in range(chosen)]
