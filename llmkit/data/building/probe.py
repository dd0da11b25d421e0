"""Opens all sources and looks at their first records, before the first of them costs anything.

So that all that is wrong with any of them is said at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from llmkit.config import schema
from llmkit.data.building.given import look_at
from llmkit.data.source import RemoteFiles, Source
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
"""Bytes of a split: a file is read from its beginning."""


def find_remote(config: schema.Data) -> dict[str, RemoteFiles]:
    """The sources that are not on local disks, looked at, by the key of their settings.

    So one process can ask for all of them: stores would not like as many questions as there are processes.
    """
    found = {}
    for index, spec in enumerate(config.sources):
        if is_remote(spec):
            try:
                source = Source.resolve(config, index)
                chats = _is_of_chats(_look_at_records(source))
                splits = source.live_reader.splits if source.live_reader else ()
                remote = RemoteFiles(list(source.files), list(splits), chats=chats)
            except UserError as error:
                remote = RemoteFiles([], [], str(error))
            found[f"data.sources.{index}"] = remote
    return found


def open_sources(config: schema.Data, known: Mapping[str, RemoteFiles] | None = None) -> list[Source]:
    """All sources, in the order of the settings; nothing is asked for of those in `known`.

    Raises UserError where some have no files; it then tells of the others, too, what is wrong with them.
    """
    opened: list[Source | UserError] = []
    for index in range(len(config.sources)):
        try:
            opened.append(Source.resolve(config, index, (known or {}).get(f"data.sources.{index}")))
        except UserError as error:
            opened.append(error)
    sources = [source for source in opened if isinstance(source, Source)]
    if len(sources) < len(opened):
        looks = (one if isinstance(one, UserError) else look_at_source(one) for one in opened)
        raise_together(look for look in looks if look)
    return sources


def asks_in_chats(source: Source, found: RemoteFiles | None) -> bool:
    """Whether the first pair of a source of preferences is of chats, not of texts. found: of a remote one.

    False where there is none that can be used, or it cannot be read: the build of the source says that.
    """
    if found is not None:
        return found.chats
    try:
        return _is_of_chats(_look_at_records(source))
    except (UserError, RunFault):
        return False


def _is_of_chats(record: Record | None) -> bool:
    return isinstance(record, Preference) and isinstance(record.chosen, Chat)


def check_sources(sources: Iterable[Source], encoder: RecordEncoder | None = None) -> None:
    """Raises UserError, or RunFault, that names each source of which nothing can be used.

    encoder: where there is one, a record must also have tokens to learn.
    """
    raise_together(look for source in sources if (look := look_at_source(source, encoder)))


def look_at_source(source: Source, encoder: RecordEncoder | None = None) -> UserError | RunFault | None:
    """Why a source cannot be used; None if a record of it can, or if more must be read to know."""
    try:
        if source.is_given:
            look_at(source)
        else:
            _look_at_records(source, encoder)
    except (UserError, RunFault) as error:
        return error
    return None


def _look_at_records(source: Source, encoder: RecordEncoder | None = None) -> Record | None:
    """The first record that can be used; None where more must be read to find one."""
    left_out: Counter[str] = Counter()
    first = ""
    files = _spread(source)
    for file in files:
        splits = split_files(source.spec, [file], WHOLE_FILE, source.setting)
        reader = SourceReader(source.spec, source.name, source.setting, source.errors, [file], splits)
        for split in range(len(splits)):
            for candidate in reader.read(split):
                found: object = candidate.record
                if encoder is not None and not isinstance(candidate.record, Skipped):
                    found = encoder.encode([candidate.record])[0]
                if not isinstance(found, Skipped) and not isinstance(candidate.record, Skipped):
                    return candidate.record
                assert isinstance(found, Skipped)
                left_out[found.reason] += 1
                if not first and found.reason != EMPTY:
                    first = f"{reader.location(split, candidate.number)}: {found.detail}"
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


def _spread(source: Source) -> Sequence[File]:
    count = len(source.files)
    chosen = min(FILES, count)
    return [source.files[k * count // chosen] for k in range(chosen)]
