"""What there is beneath a URL that holds the copies of a run.

owner.json                       the start that copies there (`owner.py`)
copies.json                      this catalogue, written last: what it calls complete is complete
checkpoints/step-00000100/...    a checkpoint, as in the run folder
record/000007/...                metrics.jsonl and other files of the run folder
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkit.copies.outgoing import MANIFEST, FilesOfCheckpoint, Outgoing, Stored, stored
from llmkit.copies.store import Store
from llmkit.errors import UserError

NAME = "copies.json"
_PLACE = r"^(checkpoints/step-\d{8}|record/\d{6})(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){1,2}$"
"""Of a file in the store."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Copy(_Entry):
    """A checkpoint. name: of its folder. complete: whether all of it is there. files: all, and its
    manifest."""

    name: Annotated[str, Field(pattern=r"^step-\d{8}$")]
    complete: bool
    files: FilesOfCheckpoint

    @property
    def step(self) -> int:
        """How many steps had been taken."""
        return int(self.name.removeprefix("step-"))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def manifest(self) -> str:
        """The name of its manifest in the store."""
        return f"checkpoints/{self.name}/{MANIFEST}"

    def path(self, file: Stored) -> str:
        """The name of a file of it in the store."""
        return f"checkpoints/{self.name}/{file.name}"


class Record(_Entry):
    """Files of the run folder as they were at a time. number: increases with each that is written."""

    number: Annotated[int, Field(ge=0)]
    files: list[Stored]

    def path(self, file: Stored) -> str:
        """The name of a file of it in the store."""
        return f"record/{self.number:06d}/{file.name}"


class Catalogue(_Entry):
    """All of it. run: a random name of the run, by which another one under the same URL is known. gone: files
    that are deleted, or are to be.
    """

    format: Literal["llmkit-copies"] = "llmkit-copies"
    version: Literal[1] = 1
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    copies: list[Copy] = []
    record: Record | None = None
    gone: list[Annotated[str, Field(pattern=_PLACE)]] = []

    @property
    def complete(self) -> list[Copy]:
        """The copies that are complete, the oldest first."""
        return sorted((copy for copy in self.copies if copy.complete), key=lambda copy: copy.step)

    def paths(self) -> set[str]:
        """The names of all files that belong to a copy or to the record, in the store."""
        found = {copy.path(file) for copy in self.copies for file in copy.files}
        return found if self.record is None else found | set(map(self.record.path, self.record.files))

    def encode(self) -> bytes:
        """The bytes of the file."""
        content = self.model_dump(mode="json")
        return _canonical({**content, "checksum": xxhash.xxh64(_canonical(content)).hexdigest()})


def decode(raw: bytes, name: str) -> Catalogue:
    """The catalogue that `encode` wrote. name: for messages. Raises UserError for anything else."""
    try:
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if content.pop("checksum", None) != xxhash.xxh64(_canonical(content)).hexdigest():
            raise ValueError("its checksum is wrong")
        return Catalogue.model_validate_json(_canonical(content))
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        why = str(error)
    raise UserError(
        f"{name}: is no list of copies as this llmkit writes it ({why}); use the version of llmkit that "
        "wrote it, or another checkpoint.copy_to"
    )


def read(store: Store) -> Catalogue | None:
    """The catalogue of a store; None where there is none. Raises RequestError, and UserError as `decode`."""
    raw = store.text(NAME)
    return None if raw is None else decode(raw, f"{store}/{NAME}")


def write(store: Store, catalogue: Catalogue) -> None:
    """Puts the catalogue in the place of the one before. Raises RequestError."""
    raw = catalogue.encode()
    store.put(NAME, Outgoing(stored(NAME, raw), raw))


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
