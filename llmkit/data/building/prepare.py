"""Makes ready what training reads: what is not in the cache is built, and the rest is opened."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from llmkit.config import schema
from llmkit.data.building.build_source import Builder
from llmkit.data.building.cache import Report
from llmkit.data.building.cached_tokenizer import cached_tokenizer
from llmkit.data.building.given import check_documents, open_given
from llmkit.data.building.opened import open_built
from llmkit.data.building.probe import asks_in_chats, check_sources, look_at_source, open_sources
from llmkit.data.curriculum import Curriculum
from llmkit.data.live.source import LiveSource
from llmkit.data.prepared import PreparedData, require_row, summary
from llmkit.data.shards.megatron import MegatronReader
from llmkit.data.source import RemoteFiles, Source
from llmkit.data.sources.urls import is_url, redact_url
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError, raise_together


def prepare(
    config: schema.Data,
    report: Report = print,
    *,
    seed: int = 0,
    workers: int | None = None,
    known: Mapping[str, RemoteFiles] | None = None,
    tokenizer: Tokenizer | None = None,
    accept: Callable[[Tokenizer], None] = lambda tokenizer: None,
) -> PreparedData:
    """The data of the settings; what is not in `cache_dir` is built.

    Any number of processes may call this at once: one builds a folder, the others wait for it. A build that
    dies leaves nothing that is taken for data, and the next one goes on with the parts that it finished.
    report: gets lines of progress. seed: of the run, for the order of live sources. workers: processes that
    tokenize, by default as many as there are cores; they do not change what is built. known: what
    was found of remote sources. tokenizer: of a model that exists, instead of the one of the settings.
    accept: is given the tokenizer before sources are built, and may raise.
    Raises UserError for mistakes in the settings or the text, RunFault if the cache cannot be written or a
    source cannot be read.
    """
    sources = open_sources(config, known)
    Curriculum.of(config, [source.name for source in sources]).check_weights()
    for warning in _read_twice(sources) if config.heldout_every else ():
        report(warning)
    here = [source for source in sources if source.setting not in (known or {})]
    tokenizer = tokenizer or cached_tokenizer(config, sources, report, lambda: check_sources(here))
    accept(tokenizer)
    has_chats = any(
        source.spec.record == "chat"
        or (source.spec.record == "preference" and asks_in_chats(source, (known or {}).get(source.setting)))
        for source in sources
    )
    if has_chats:  # whoever talks to the model needs it too
        tokenizer.chat_template = tokenizer.chat_template or CHATML
    encoder = RecordEncoder(tokenizer, pair_length=config.sequence_length if config.has_pairs else None)
    if has_chats and config.document_masks and encoder.splits_chats:
        report(
            f"data: WARNING: the chat template writes end-of-text ({tokenizer.end_of_text}) between turns, "
            "and with data.document_masks no turn sees those before it; name another token as "
            "data.tokenizer.end_of_text, or set data.document_masks to false"
        )
    check = cache(lambda: check_sources(here, encoder))
    sources = _open_given(config, sources, here, encoder)
    if any(source.spec.live for source in sources):  # others are looked at before any of them is built
        check()
    for source in sources:
        if isinstance(source.stored, MegatronReader):
            check_documents(source.stored, source.name, config.cache_dir, report, check)
    builder = Builder(config, tokenizer, encoder, report, workers, check)
    # Small ones first: that one of them does not fill a row is told before a large one is tokenized.
    by_size = sorted(sources, key=lambda source: sum(file.size for file in source.files))
    ready = {source.index: _make_ready(source, config, encoder, builder, seed) for source in by_size}
    prepared = PreparedData.of(config, tokenizer, [ready[source.index] for source in sources])
    for warning in _held_out_and_trained_on(prepared):
        report(warning)
    report(summary(prepared))
    return prepared


def _make_ready(
    source: Source, config: schema.Data, encoder: RecordEncoder, builder: Builder, seed: int
) -> Source:
    """The source with its rows, built where they are not in the cache."""
    if source.is_given:
        return source
    if (reader := source.live_reader) is None:
        source = open_built(source, builder.build(source), encoder.tokenizer)
        assert source.stored is not None, source.name
        require_row(source.name, source.stored.tokens, config.row_length)
        return source
    if config.heldout_every:
        source = open_built(source, builder.build_heldout(source, reader), encoder.tokenizer)
    live = LiveSource.of(reader, config, encoder).keyed(source.index, seed)
    return dataclasses.replace(source, live=live)


def _open_given(
    config: schema.Data, sources: Sequence[Source], here: Sequence[Source], encoder: RecordEncoder
) -> list[Source]:
    """The sources, opened where their tokens were made by others.

    Raises UserError where one cannot be read; it then tells of all sources `here` what is wrong with them.
    """
    opened: list[Source] = []
    errors: dict[str, UserError] = {}
    for source in sources:
        if source.is_given:
            try:
                source = open_given(source, encoder.tokenizer)
                assert source.stored is not None, source.name
                require_row(source.name, source.stored.tokens, config.sequence_length)
            except UserError as error:
                errors[source.name] = error
        opened.append(source)
    if errors:
        looks = (errors.get(source.name) or look_at_source(source, encoder) for source in here)
        raise_together(look for look in looks if look)
    return opened


def _read_twice(sources: Sequence[Source]) -> Iterator[str]:
    """Warnings about files that two sources read: what the one holds out, the other trains on."""
    first: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        for file in source.files:
            path = file.path if is_url(file.path) else os.path.abspath(file.path)
            if first.setdefault(path, source.name) != source.name:
                shared.setdefault((first[path], source.name), []).append(file.path)
    for (one, other), paths in shared.items():
        more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
        yield (
            f"data: WARNING: {one} and {other} both read {redact_url(paths[0])}{more}: what is held out of "
            "the one is trained on in the other"
        )


def _held_out_and_trained_on(prepared: PreparedData) -> Iterator[str]:
    """A warning for each source whose held-out tokens are the very ones that a source trains on."""
    trained = {rows.digest: name for name, rows in prepared.stored.items()}
    for name, heldout in prepared.heldout.items():
        if heldout.digest in trained:
            yield (
                f"data: WARNING: what source {name} holds out is what source {trained[heldout.digest]} "
                "trains on, so that the held-out loss tells nothing; name other shards as its heldout_path"
            )
