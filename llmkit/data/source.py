"""A source of the settings: the files that it stands for and, once they are prepared, what is read of them.

Example: `{type: jsonl, path: web/*.jsonl, weight: 3}`, the second of `data.sources`, where web holds a.jsonl
and b.jsonl:

    Source.resolve(config, 1)     name "jsonl-1", kind "shards", files web/a.jsonl and web/b.jsonl
    ... as `prepare` returns it   stored: the tokens of all documents but every 200th; heldout: of these;
                                  folder: CACHE/jsonl-1-0f3a..., where both lie
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import JsonValue

from llmkit.config import schema
from llmkit.config.check import source_name
from llmkit.data.live.source import LiveSource, known_files, open_reader
from llmkit.data.shards.dataset import TokenDataset
from llmkit.data.shards.reader import ShardReader
from llmkit.data.sources.custom import CustomSpec, custom_spec
from llmkit.data.sources.files import File, list_files, stat_files
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import Policy
from llmkit.data.sources.splits import Split, split_files
from llmkit.errors import UserError

_NOT_OF_THE_TOKENS = {"path", "dataset", "live", "weight", "max_epochs", "heldout_path"}
"""Settings of a source that decide where it lies and how it is used, but not what its records are."""


class RemoteFiles(NamedTuple):
    """What one process found of a remote source, so that no other asks; can be written as JSON.

    splits: of a live source, its files in splits. mistake: why it cannot be read, else "". chats: whether its
    first usable record is a pair of chats.
    """

    files: list[File]
    splits: list[Split]
    mistake: str = ""
    chats: bool = False


@dataclass(frozen=True)
class Source:
    """A source of the settings. `resolve` finds its files; `building.prepare.prepare` sets what follows them.

    index: in `data.sources`. spec: its settings. errors: `data.errors`. files: what it reads; none where the
    tokens were made by others. live_reader: of a live source, its records.

    stored: training tokens on disk; None for a live source. live: what tokenizes it while training. heldout:
    tokens for evaluation, if there are any; `index.extra` may have what general compressors make of the text.
    folder: of the cache, with what was built of it, if anything. left_out: documents that were left out or
    mended then, by reason. duplicates: documents that are exact copies of others, None = not counted.
    reference, heldout_reference: of pairs, (pairs, 2) float32: the log-probabilities of their sequences under
    the reference model.
    """

    index: int
    spec: schema.Source
    errors: Policy = "raise"
    files: Sequence[File] = ()
    live_reader: SourceReader | None = None
    stored: TokenDataset | None = None
    live: LiveSource | None = None
    heldout: ShardReader | None = None
    folder: Path | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    duplicates: int | None = None
    reference: np.ndarray | None = None
    heldout_reference: np.ndarray | None = None

    @classmethod
    def resolve(cls, config: schema.Data, index: int, remote: RemoteFiles | None = None) -> Source:
        """A source of the settings with its files; `remote` says what they are, where that is known.

        Raises UserError where it has no files.
        """
        if remote and remote.mistake:
            raise UserError(remote.mistake)
        source = cls(index, custom_spec(config.sources[index]), config.errors)
        spec, setting, splits = source.spec, source.setting, None
        if source.is_given:
            return source
        if remote is None:
            files: Sequence[File] = list_files(spec, setting)
        else:
            files, splits = remote.files, remote.splits
        live = open_reader(spec, source.name, setting, config, files, splits) if spec.live else None
        return cls(index, spec, config.errors, files, live)

    @property
    def name(self) -> str:
        """Its own name, or one made of its type and index."""
        return source_name(self.index, self.spec)

    @property
    def setting(self) -> str:
        """The key of its settings, for messages."""
        return f"data.sources.{self.index}"

    @property
    def weight(self) -> float:
        """Share of the rows relative to the other sources, unless `data.curriculum` says otherwise."""
        return self.spec.weight

    @property
    def max_epochs(self) -> int | None:
        """How often it may be read; None = no limit."""
        return self.spec.max_epochs

    @property
    def is_given(self) -> bool:
        """Whether its tokens were made by others."""
        return self.spec.type in schema.PRETOKENIZED

    @property
    def kind(self) -> Literal["shards", "megatron", "live"]:
        """How its rows are read."""
        if self.spec.live:
            return "live"
        return "megatron" if self.spec.type == "megatron" else "shards"

    @property
    def has_mask(self) -> bool:
        """Whether some of its tokens are no targets of the loss."""
        rows = self.live if self.stored is None else self.stored
        assert rows is not None, f"{self.name} is not prepared"
        return rows.has_mask

    def reader(self, split_bytes: int) -> SourceReader:
        """Reads its records, in splits of about so many bytes."""
        splits = split_files(self.spec, self.files, split_bytes, self.setting)
        return SourceReader(self.spec, self.name, self.setting, self.errors, self.files, splits)

    def described(self) -> dict[str, JsonValue]:
        """All that decides its records, as JSON: settings, and files by content and time of change."""
        settings = self.spec.model_dump(mode="json", exclude=_NOT_OF_THE_TOKENS)
        known = zip(known_files(self.files), self.files, strict=True)
        files: list[JsonValue] = [[*one, file.stamp] for one, file in known]
        return settings | {"name": self.name, "errors": self.errors, "files": files}

    def check_unchanged(self) -> None:
        """Raises UserError where its files are not what they were any more; there may be new ones."""
        if isinstance(self.spec, CustomSpec):
            now = list_files(self.spec, self.setting)
        else:
            now = stat_files([file.path for file in self.files])
        if now != list(self.files):
            raise UserError(
                f"source {self.name}: its files changed while they were read; run the same command again"
            )
