"""A data source of one's own: the rows of a SQLite database, in units of a thousand.

In the configuration: `plugins: [own_source]` and, under `data.sources`,
`- {type: sqlite, database: posts.db, query: SELECT text FROM posts ORDER BY id}`. With `live: true` it is
tokenized while the model trains, otherwise before.
"""

import hashlib
import sqlite3
from collections.abc import Iterator

import llmkit

ROWS = 1000


@llmkit.register("source", "sqlite")
class Sqlite(llmkit.DataSource):
    """The texts that a query gives."""

    class Config(llmkit.Section):
        """A query to a SQLite database."""

        database: str
        """File of the database, relative to the working directory."""
        query: str
        """Its first column is the text; it must have an order of its own, such as ORDER BY id."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def units(self) -> list[str]:
        """Each unit is named after the number of its first row."""
        (count,) = self._rows(f"SELECT count(*) FROM ({self.config.query})").fetchone()
        return [str(first) for first in range(0, count, ROWS)]

    def read(self, unit: str, first: int) -> Iterator[str]:
        """The texts of a unit from one of them on."""
        limits = f"LIMIT {ROWS - first} OFFSET {int(unit) + first}"
        for (text,) in self._rows(f"SELECT * FROM ({self.config.query}) {limits}"):
            yield text

    def fingerprint(self, unit: str) -> str:
        """Of the texts themselves; a version number or a date of the last change would be cheaper."""
        digest = hashlib.sha256()
        for text in self.read(unit, 0):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def _rows(self, query: str) -> sqlite3.Cursor:
        return sqlite3.connect(f"file:{self.config.database}?mode=ro", uri=True).execute(query)
