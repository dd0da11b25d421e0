"""A metric sink of one's own: the training rows as a CSV file, for a spreadsheet.

In the configuration: `plugins: [own_sink]` and `monitor: {sinks: [{type: csv, path: losses.csv}]}`; from
Python `llmkit.train(llmkit.load("mine.yaml"), sinks=[Csv(Csv.Config(path="losses.csv"))])`.
"""

import csv
from collections.abc import Mapping
from typing import Any

import llmkit

COLUMNS = ("step", "tokens", "loss", "learning_rate", "tokens_per_second")


@llmkit.register("sink", "csv")
class Csv(llmkit.Sink):
    """Appends to a file; called in a thread of its own, on rank 0."""

    class Config(llmkit.Section):
        """Where the rows go."""

        path: str
        """The file, relative to the working directory."""

    def __init__(self, config: Config) -> None:
        self.file = open(config.path, "a", newline="")  # noqa: SIM115
        self.writer = csv.DictWriter(self.file, COLUMNS, extrasaction="ignore")
        if not self.file.tell():
            self.writer.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        """Evaluations are rows too: they have no loss of a step."""
        if "loss" in row:
            self.writer.writerow(row)
            self.file.flush()

    def close(self) -> None:
        """After the last row."""
        self.file.close()
