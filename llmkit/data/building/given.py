"""Tokens that somebody else made, read as they are: token shards, and the files of Megatron-LM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.data.building.cache import Report, build_once, content_key
from llmkit.data.shards.format import read_index
from llmkit.data.shards.megatron import MegatronReader
from llmkit.data.shards.megatron_index import MegatronIndex, find_prefixes, with_suffix
from llmkit.data.shards.reader import ShardReader
from llmkit.data.source import Source
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import may_exist, sync_folder, write_sealed


def look_at(source: Source) -> None:
    """Raises UserError where there are no such tokens, whatever tokenizer made them; reads little."""
    spec = source.spec
    if spec.type == "megatron":
        for prefix in find_prefixes(str(_path(spec))):
            MegatronIndex(with_suffix(prefix, ".idx"))
        return
    heldout = [] if spec.heldout_path is None else [Path(spec.heldout_path)]
    for folder in (_path(spec), *heldout):
        _look_for_index(folder, source.name)
        read_index(folder, _remedy(source.name))


def open_given(source: Source, tokenizer: Tokenizer) -> Source:
    """The source with its tokens. Raises UserError where they are gone, damaged or of another tokenizer."""
    spec = source.spec
    if spec.type == "megatron":
        rows = MegatronReader(_path(spec), tokenizer.vocab_size, tokenizer.end_of_text_id)
        return dataclasses.replace(source, stored=rows)
    heldout = None if spec.heldout_path is None else _shards(Path(spec.heldout_path), source.name, tokenizer)
    return dataclasses.replace(source, stored=_shards(_path(spec), source.name, tokenizer), heldout=heldout)


def check_documents(
    rows: MegatronReader, name: str, cache_dir: str, report: Report, check: Callable[[], None]
) -> None:
    """Checks the end of every document, once for files as they are: the cache remembers it.

    check: raises what is wrong with any of the sources; called before, as this may take long.
    Raises UserError where a document would run into the next one.
    """
    described: dict[str, JsonValue] = {"version": 1, "files": rows.digest, "times": list(rows.times)}
    folder = Path(cache_dir) / f"{name}-checked-{content_key(described)}"

    def fill(tmp: Path) -> None:
        """Checks the documents, and leaves the folder `whole` in the tmp as a sign of it."""
        check()
        many = f"{rows.documents:,} documents"
        report(f"data: {name}: looking whether each of {many} ends with end-of-text, once for these files")
        rows.check_documents()
        (tmp / "whole").mkdir()
        write_sealed(tmp / "whole" / "checked.json", {"version": 1, "documents": rows.documents})
        sync_folder(tmp / "whole")

    build_once(folder, fill, report)


def _path(spec: schema.Source) -> Path:
    path = spec.path if isinstance(spec.path, str) else (spec.path or [""])[0]
    return Path(path)


def _look_for_index(folder: Path, name: str) -> None:
    """Raises UserError where this is no folder of shards, as one that holds such folders."""
    if may_exist(folder / "index.json"):
        return
    inside = sorted(str(index.parent) for index in folder.glob("*/index.json"))
    meant = f"; folders of token shards in it: {', '.join(inside[:3])}" if inside else ""
    raise UserError(
        f"source {name}: {folder} is no folder of token shards: there is no index.json in it{meant}"
    )


def _shards(folder: Path, name: str, tokenizer: Tokenizer) -> ShardReader:
    _look_for_index(folder, name)
    return ShardReader(folder, tokenizer.vocab_size, tokenizer.hash, _remedy(name), tokenizer.end_of_text_id)


def _remedy(name: str) -> str:
    return f"source {name} is read as it is: mend or replace that folder, or name its own tokenizer"
