"""The tokenizer of the settings, made once and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from pydantic import JsonValue
from xxhash import xxh64_hexdigest

from llmkit.config import schema
from llmkit.data.building.cache import Report, build_once, content_key, opening_cache
from llmkit.data.building.parts import HeldOutSampler, group_splits, part_bytes_of
from llmkit.data.live.heldout import heldout_records
from llmkit.data.source import Source
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import Record, Skipped
from llmkit.data.tokens.encode import text_of
from llmkit.data.tokens.make_tokenizer import files_beside, make_tokenizer
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import may_exist, read_sealed, sync_folder, write_sealed

VERSION = 5
"""Changes with anything that makes the same settings give another tokenizer."""
TOKENIZER_TEXT = 1 << 28
"""Characters that a tokenizer is trained on, over all sources."""
PLAN_TEXT = 8 << 20
"""The same for a plan, which needs the tokens of a text about."""
TRAINED_ON = 64
"""Splits, or parts, evenly spread over a source, from whose beginnings text is taken."""


def cached_tokenizer(
    config: schema.Data, sources: Sequence[Source], report: Report, check: Callable[[], None]
) -> Tokenizer:
    """The tokenizer of the settings, from the cache or made and put there.

    check: raises what is wrong with any of the sources; called before a tokenizer is made.
    Raises UserError for settings that contradict each other or a tokenizer that cannot be had.
    """
    spec, readable = config.tokenizer, _readable(config, sources)
    folder = _folder(config, readable)

    def fill(tmp: Path) -> None:
        """Makes the tokenizer, in the folder `whole` of `tmp`."""
        check()
        tokenizer = make_tokenizer(spec, _texts(config, readable, TOKENIZER_TEXT))
        if spec.type == "bpe":
            _report_size(tokenizer.vocab_size, spec.vocab_size or schema.BPE_VOCAB_SIZE, report)
        tokenizer.save(tmp / "whole")
        files = {name: xxh64_hexdigest(content) for name, content in tokenizer.files().items()}
        sealed = {"version": 2, "hash": tokenizer.hash, "files": files}
        write_sealed(tmp / "whole" / "hash.json", sealed)
        sync_folder(tmp / "whole")

    build_once(folder, fill, report)
    return _load(folder)


def planned_tokenizer(
    config: schema.Data, sources: Sequence[Source], check: Callable[[], None]
) -> tuple[Tokenizer, str | None]:
    """The tokenizer of the settings, without writing; with a note where it is one like it.

    A tokenizer that would have to be trained is trained on less text. check: as in `cached_tokenizer`.
    """
    spec, readable = config.tokenizer, _readable(config, sources)
    folder = _folder(config, readable)
    if may_exist(folder):
        return _load(folder), None
    check()
    tokenizer = make_tokenizer(spec, _texts(config, readable, PLAN_TEXT))
    note = f"the tokenizer is trained by the build; this one saw at most {PLAN_TEXT >> 20} MB of text"
    return tokenizer, note if spec.type == "bpe" else None


def _readable(config: schema.Data, sources: Sequence[Source]) -> list[Source]:
    """The sources with text; raises UserError where a tokenizer is to be trained and there is none."""
    readable = [source for source in sources if not source.is_given and source.spec.record != "ids"]
    if config.tokenizer.type == "bpe" and not readable:
        raise UserError(
            "data.tokenizer.type: bpe trains a tokenizer, but no source has text to train it on; name the "
            "tokenizer that made the tokens (type file or hub)"
        )
    return readable


def _folder(config: schema.Data, readable: Sequence[Source]) -> Path:
    described: dict[str, JsonValue] = {"version": VERSION, "tokenizer": _described(config.tokenizer)}
    if config.tokenizer.type == "bpe":
        described["heldout_every"] = config.heldout_every
        described["sources"] = [
            {"live": source.spec.live and config.stream_shards, **source.described()} for source in readable
        ]
    return Path(config.cache_dir) / f"tokenizer-{content_key(described)}"


def _load(folder: Path) -> Tokenizer:
    remedy = f"delete {folder} and build the data again"
    with opening_cache():
        tokenizer = Tokenizer.load(folder, remedy)
        known = read_sealed(folder / "hash.json", remedy, first=2)
        files = known.get("files", {})  # of an older llmkit there are none
        damaged = [n for n, hashed in files.items() if xxh64_hexdigest((folder / n).read_bytes()) != hashed]
    if damaged or known.get("hash") != tokenizer.hash:
        what = ", ".join(damaged) or "its content"
        raise UserError(f"{folder}: the tokenizer is not what was put there ({what} is damaged); {remedy}")
    return tokenizer


def _described(spec: schema.Tokenizer) -> JsonValue:
    """The settings, with files by their content."""
    settings: dict[str, JsonValue] = spec.model_dump(mode="json")
    beside = files_beside(Path(spec.path)) if spec.type == "file" and spec.path else []
    files = [("path", spec.path, "path"), ("chat_template", spec.chat_template, "chat_template")]
    for setting, path, name in [*files, *(("path", str(path), path.name) for path in beside)]:
        if path is not None:
            try:
                settings[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError as error:
                meant = "; name the file in it" if isinstance(error, IsADirectoryError) else ""
                raise UserError(
                    f"data.tokenizer.{setting}: {path} cannot be read ({error.strerror}){meant}"
                ) from error
    return settings


def _texts(config: schema.Data, sources: Sequence[Source], limit: int) -> Iterator[str]:
    """Text to train on; from all over each source, up to its share of `limit` characters."""
    for source in sources:
        stretches = _stretches(config, source)
        for records in stretches:
            room = limit // (len(sources) * len(stretches))
            for record in records:
                text = text_of(record)
                yield text
                room -= len(text)
                if room <= 0:
                    break


def _stretches(config: schema.Data, source: Source) -> list[Iterator[Record]]:
    """The training records of some splits of a live source, or of some parts of another."""
    every = config.heldout_every
    if (live := source.live_reader) is not None:
        held = heldout_records(len(live.splits), every)
        splits = _spread(len(live.splits))
        return [_records(live, (split,), held.get(split, range(0)).__contains__) for split in splits]
    reader = source.reader(part_bytes_of(source.files))
    parts = group_splits(reader.splits, part_bytes_of(source.files))
    return [_records(reader, parts[part], HeldOutSampler(part, every)) for part in _spread(len(parts))]


def _records(
    reader: SourceReader, splits: Sequence[int], is_heldout: Callable[[int], bool]
) -> Iterator[Record]:
    """The records of some splits, but those held out, which are known by their index among these."""
    for index, record in enumerate(chain.from_iterable(map(reader.read, splits))):
        if not is_heldout(index) and not isinstance(record.record, Skipped):
            yield record.record


def _spread(count: int) -> list[int]:
    """At most TRAINED_ON of the indexes below `count`."""
    chosen = min(TRAINED_ON, count)
    return [k * count // chosen for k in range(chosen)]


def _report_size(size: int, wanted: int, report: Report) -> None:
    if size < wanted:
        report(
            f"data: WARNING: the text yields a tokenizer of {size} tokens only, {wanted} are asked for in "
            "data.tokenizer.vocab_size; more text or a smaller size would make them meet"
        )
    else:
        report(f"data: trained a tokenizer of {size} tokens")
