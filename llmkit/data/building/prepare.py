"""Makes ready what training reads: what is not in the cache is built, and the rest is opened."""

from __future__ import annotations

from collections.abc import Mapping

from llmkit.config import schema
from llmkit.data.building.build_source import Builder
from llmkit.data.building.cache import Report
from llmkit.data.building.cached_tokenizer import cached_tokenizer
from llmkit.data.building.opened import Found, OpenedSource, open_sources, read_twice
from llmkit.data.live.source import LiveSource
from llmkit.data.prepared import Place, Prepared, open_prepared, summary
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer


def prepare(
    config: schema.Data,
    report: Report = print,
    *,
    seed: int = 0,
    workers: int | None = None,
    known: Mapping[str, Found] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Prepared:
    """The data of the settings; what is not in `cache_dir` is built.

    Any number of processes may call this at once: one builds a folder, the others wait for it. A build that
    dies leaves nothing that is taken for data, and the next one goes on with the parts that it finished.
    report: gets lines of progress. seed: of the run, for the order of live sources. workers: processes that
    tokenize, by default as many as there are cores; they do not change what is built. known: what
    was found of sources elsewhere. tokenizer: of a model that exists, instead of the one of the settings.
    Raises UserError for mistakes in the settings or the text, RunFault if the cache cannot be written or a
    source cannot be read.
    """
    sources = open_sources(config, known)
    for warning in read_twice(sources) if config.heldout_every else ():
        report(warning)
    tokenizer = tokenizer or cached_tokenizer(config, sources, report)
    if any(spec.record == "chat" for spec in config.sources):  # whoever talks to the model needs it too
        tokenizer.chat_template = tokenizer.chat_template or CHATML
    encoder = RecordEncoder(tokenizer)
    builder = Builder(config, tokenizer, encoder, report, workers)
    places = [_place(source, config, encoder, builder, seed) for source in sources]
    prepared = open_prepared(config, tokenizer, places)
    report(summary(prepared))
    return prepared


def _place(
    source: OpenedSource,
    config: schema.Data,
    encoder: RecordEncoder,
    builder: Builder,
    seed: int,
) -> Place:
    if source.kind == "given":
        return Place(source.name, source.spec)
    if source.live is None:
        return Place(source.name, source.spec, builder.build(source))
    live = LiveSource.of(source.live, config, encoder)
    folder = builder.build_heldout(source, source.live) if config.heldout_every else None
    return Place(source.name, source.spec, folder, live.numbered(source.number, seed))
