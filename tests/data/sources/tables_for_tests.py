"""Sources in small files, tables among them, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.config.schema import Source
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import Text
from tests.data.sources.conftest import read_all


def write_table(path: Path, table: pa.Table, rows: int) -> str:
    """A parquet file, an Arrow file or (.stream.arrow) an Arrow stream, in groups of so many rows."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows, write_page_checksum=True)
        return str(path)
    opened = pa.ipc.new_stream if ".stream" in path.name else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return str(path)


def as_source(path: str, **fields: Any) -> Source:
    kinds = {".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
    return Source(type=kinds.get(Path(path).suffix, "jsonl"), path=path, **fields)


def texts(reader: SourceReader) -> list[Any]:
    return [c.record.text if isinstance(c.record, Text) else c.record for c in read_all(reader)]


TABLES = ["a.parquet", "a.arrow", "a.stream.arrow"]
