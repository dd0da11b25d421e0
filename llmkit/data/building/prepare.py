"""Makes ready what training reads: what is not in the cache is built, and the rest is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from llmkit.config import schema
from llmkit.data.building.build_source import Builder
from llmkit.data.building.cache import Report, opening_cache
from llmkit.data.building.cached_tokenizer import cached_tokenizer
from llmkit.data.building.given import Given, check_documents, open_given
from llmkit.data.building.opened import Found, OpenedSource, read_twice
from llmkit.data.building.probe import asks_in_chats, check_sources, look_at_source, open_sources
from llmkit.data.curriculum import Curriculum
from llmkit.data.live.source import LiveSource
from llmkit.data.prepared import Place, Prepared, open_prepared, rebuild_remedy, require_row, summary
from llmkit.data.shards.format import read_index
from llmkit.data.shards.megatron import MegatronReader
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
    known: Mapping[str, Found] | None = None,
    tokenizer: Tokenizer | None = None,
    accept: Callable[[Tokenizer], None] = lambda tokenizer: None,
) -> Prepared:
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
    for warning in read_twice(sources) if config.heldout_every else ():
        report(warning)
    here = [source for source in sources if source.place not in (known or {})]
    tokenizer = tokenizer or cached_tokenizer(config, sources, report, lambda: check_sources(here))
    accept(tokenizer)
    has_chats = any(
        source.spec.record == "chat"
        or (source.spec.record == "preference" and asks_in_chats(source, (known or {}).get(source.place)))
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
    given = _open_given(config, here, encoder)
    check = cache(lambda: check_sources(here, encoder))
    if any(source.live for source in sources):  # others are looked at before any of them is built
        check()
    for name, one in given.items():
        if isinstance(one.rows, MegatronReader):
            check_documents(one.rows, name, config.cache_dir, report, check)
    builder = Builder(config, tokenizer, encoder, report, workers, check)
    # Small ones first: that one of them does not fill a row is told before a large one is tokenized.
    by_size = sorted(sources, key=lambda source: sum(file.size for file in source.files))
    places = {one.name: _place(one, config, encoder, builder, seed, given) for one in by_size}
    prepared = open_prepared(config, tokenizer, [places[source.name] for source in sources])
    for warning in _held_out_and_trained_on(prepared):
        report(warning)
    report(summary(prepared))
    return prepared


def _held_out_and_trained_on(prepared: Prepared) -> Iterator[str]:
    """A warning for each source whose held-out tokens are the very ones that a source trains on."""
    trained = {source.stored.digest: source.name for source in prepared.train if source.stored}
    for held in prepared.heldout:
        if held.reader.digest in trained:
            yield (
                f"data: WARNING: what source {held.name} holds out is what source "
                f"{trained[held.reader.digest]} trains on, so that the held-out loss tells nothing; "
                "name other shards as its heldout_path"
            )


def _open_given(
    config: schema.Data, sources: Sequence[OpenedSource], encoder: RecordEncoder
) -> dict[str, Given]:
    """The sources that are read as they are, by name.

    Raises UserError where one cannot be read; it then tells of all `sources` what is wrong with them.
    """
    found: dict[str, Given] = {}
    errors: dict[str, UserError] = {}
    for source in sources:
        if source.kind == "given":
            try:
                found[source.name] = given = open_given(source.spec, source.name, encoder.tokenizer)
                require_row(source.name, given.rows.tokens, config.sequence_length)
            except UserError as error:
                errors[source.name] = error
    if errors:
        looks = (errors.get(source.name) or look_at_source(source, encoder) for source in sources)
        raise_together(look for look in looks if look)
    return found


def _place(
    source: OpenedSource,
    config: schema.Data,
    encoder: RecordEncoder,
    builder: Builder,
    seed: int,
    given: Mapping[str, Given],
) -> Place:
    if source.name in given:
        return Place(source.name, source.spec, given=given[source.name])
    if source.live is None:
        built = builder.build(source)
        with opening_cache():
            tokens = read_index(built / "train", rebuild_remedy(built)).tokens
        require_row(source.name, tokens, config.row_length)
        return Place(source.name, source.spec, built)
    live = LiveSource.of(source.live, config, encoder)
    folder = builder.build_heldout(source, source.live) if config.heldout_every else None
    return Place(source.name, source.spec, folder, live.keyed(source.number, seed))
