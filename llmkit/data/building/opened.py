"""The sources of the settings with the files that they stand for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.config.check import source_name
from llmkit.data.live.source import known_files, open_reader
from llmkit.data.sources.custom import CustomSpec, custom_spec
from llmkit.data.sources.files import File, list_files, stat_files
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import Policy
from llmkit.data.sources.splits import Split, split_files
from llmkit.data.sources.urls import is_url, redact_url
from llmkit.errors import UserError

_NOT_OF_THE_TOKENS = {"path", "dataset", "live", "weight", "max_epochs", "heldout_path"}
"""Settings of a source that decide where it lies and how it is used, but not what its records are."""


@dataclass(frozen=True)
class OpenedSource:
    """A source and its files. number: its place in the list. live: reads it, if it is a live one."""

    number: int
    spec: schema.Source
    name: str
    errors: Policy
    files: Sequence[File]
    live: SourceReader | None = None

    @property
    def place(self) -> str:
        """The key of its settings, for messages."""
        return f"data.sources.{self.number}"

    @property
    def kind(self) -> Literal["built", "live", "given"]:
        """Tokenized before training, while training, or by somebody else."""
        if self.spec.type in schema.PRETOKENIZED:
            return "given"
        return "built" if self.live is None else "live"

    def reader(self, unit_bytes: int) -> SourceReader:
        """Reads its records, in units of about so many bytes."""
        units = split_files(self.spec, self.files, unit_bytes, self.place)
        return SourceReader(self.spec, self.name, self.place, self.errors, self.files, units)

    def described(self) -> dict[str, JsonValue]:
        """All that decides its records, as JSON. Files count by what they are known by and time of change."""
        settings = self.spec.model_dump(mode="json", exclude=_NOT_OF_THE_TOKENS)
        known = zip(known_files(self.files), self.files, strict=True)
        files: list[JsonValue] = [[*one, file.stamp] for one, file in known]
        return settings | {"name": self.name, "errors": self.errors, "files": files}

    def check_unchanged(self) -> None:
        """Raises UserError where its files are not what they were any more; there may be new ones."""
        if isinstance(self.spec, CustomSpec):
            now = list_files(self.spec, self.place)
        else:
            now = stat_files([file.path for file in self.files])
        if now != list(self.files):
            raise UserError(
                f"source {self.name}: its files changed while they were read; run the same command again"
            )


def read_twice(sources: Sequence[OpenedSource]) -> list[str]:
    """Warnings about files that two sources read: what the one holds out, the other trains on."""
    first: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        for file in source.files:
            path = file.path if is_url(file.path) else os.path.abspath(file.path)
            if first.setdefault(path, source.name) != source.name:
                shared.setdefault((first[path], source.name), []).append(file.path)
    return [
        f"data: WARNING: {one} and {other} both read {redact_url(paths[0])}"
        + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")
        + ": what is held out of the one is trained on in the other"
        for (one, other), paths in shared.items()
    ]


class Found(NamedTuple):
    """What was asked for of a remote source: its files and, of a live one, their units. mistake: or why
    there is none. chats: whether its first record that can be used is a pair of chats."""

    files: Sequence[File]
    units: Sequence[Split]
    mistake: str = ""
    chats: bool = False


def open_source(config: schema.Data, number: int, found: Found | None = None) -> OpenedSource:
    """A source of the settings; nothing is asked for where it is known what was `found`.

    Raises UserError where it has no files.
    """
    spec, place = custom_spec(config.sources[number]), f"data.sources.{number}"
    name = source_name(number, spec)
    if found and found.mistake:
        raise UserError(found.mistake)
    files: Sequence[File] = []
    if spec.type not in schema.PRETOKENIZED:
        files = found.files if found else list_files(spec, place)
    units = found.units if found else None
    live = open_reader(spec, name, place, config, files, units) if spec.live else None
    return OpenedSource(number, spec, name, config.errors, files, live)
