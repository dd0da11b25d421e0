"""The sizes at which recipes are compared, and the text that all contenders train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.workloads import ROOT
from llmkit.batch import Rows
from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.data.building.prepare import prepare
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.errors import UserError
from llmkit.recipes import rules
from llmkit.recipes.compose import Source, compose
from llmkit.recipes.document import plain

DEMO = ROOT / "configs" / "demo.yaml"
HELDOUT_ROWS = 16
"""Rows of a held-out batch."""
VOCABULARY_MULTIPLE = 64
"""A peer's vocabulary is padded to a multiple of this, as llmkit's is."""


@dataclass(frozen=True)
class Size:
    """A shape of the peers, and how much text they see.

    kv_heads: of the contenders that share key and value heads. vocabulary: tokens that the tokenizer is
    trained to. length: tokens of a row. rows: of a step. steps: of the run at equal tokens. tokenizer: its
    type. source: an entry of `data.sources`.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int
    rows: int
    steps: int
    tokenizer: str = "bpe"
    source: Mapping[str, str] = field(default_factory=lambda: {"type": "stdlib"})

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.length

    @property
    def tokens(self) -> int:
        """Tokens of the run at equal tokens."""
        return self.steps * self.step_tokens

    def config(self, seed: int, steps: int, cache: Path) -> Config:
        """llmkit's settings: configs/demo.yaml, or what `llmkit new` writes for the size, and the text.

        cache: where tokens are kept.
        """
        sections = load(DEMO).config.model_dump() if self.name == "demo" else self._new(steps)
        sections["run"] |= {"seed": seed}
        sections["train"] |= {
            "max_steps": steps, "max_minutes": None, "global_batch_size": self.rows,
            "micro_batch_size": self.rows,
        }  # fmt: skip
        size = self.vocabulary if self.tokenizer == "bpe" else None
        sections["data"] |= {
            "sources": [self.source], "tokenizer": {"type": self.tokenizer, "vocab_size": size},
            "sequence_length": self.length, "cache_dir": str(cache),
        }  # fmt: skip
        return Config.model_validate(sections)

    def _new(self, steps: int) -> dict[str, Any]:
        """The settings that `llmkit new` writes for this depth, width and number of steps."""
        model = rules.Size(self.layers, self.width, self.vocabulary, self.length)
        budget = rules.Budget(steps * self.step_tokens, self.rows, steps, flops=0.0)
        source = Source(dict(self.source), {"type": self.tokenizer})
        return plain(compose(self.name, model, budget, source, device=None, gpus=1))


SIZES = {
    each.name: each
    for each in (
        Size("demo", 4, 192, 3, 1, vocabulary=4096, length=256, rows=8, steps=1361),
        Size("5m", 6, 256, 4, 2, vocabulary=4096, length=512, rows=8, steps=900),
        Size("14m", 6, 384, 6, 6, vocabulary=8192, length=256, rows=16, steps=900),
    )
}
TOY = Size(
    "toy", 2, 64, 2, 1, vocabulary=257, length=32, rows=4, steps=8, tokenizer="bytes",
    source={"type": "text", "path": f"{ROOT}/benchmarks/*.py"},
)  # fmt: skip
"""Seconds on any machine: for the tests, and to see that all contenders run."""


def find(name: str) -> Size:
    """The size of that name. Raises UserError for an unknown one."""
    if name == TOY.name:
        return TOY
    if name not in SIZES:
        raise UserError(f"there is no size named {name!r}; choose among {', '.join(SIZES)}, {TOY.name}")
    return SIZES[name]


class Text:
    """What is trained on and evaluated with, the same for all contenders, by llmkit's own loader."""

    def __init__(self, size: Size, cache: Path, report: Callable[[str], None] = lambda line: None) -> None:
        self.size = size
        self._cache = cache
        self._prepared: PreparedData = prepare(size.config(0, size.steps, cache).data, report)

    @property
    def vocabulary(self) -> int:
        """Tokens of the tokenizer, padded."""
        return -(-self.tokenizer_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def tokenizer_size(self) -> int:
        """Tokens of the tokenizer."""
        return self._prepared.tokenizer.vocab_size

    def config(self, seed: int, steps: int) -> Config:
        """llmkit's settings for a run."""
        return self.size.config(seed, steps, self._cache)

    def training(self, seed: int, steps: int) -> list[Rows]:
        """The batches of a run in the order that the seed gives; of a shorter run the first of them."""
        config = self.config(seed, steps)
        loader = TrainLoader(self._prepared, config.data, seed, self.size.rows, self.size.rows)
        with closing(loader):
            return [next(loader).micro_batches[0] for _ in range(steps)]

    @cached_property
    def heldout(self) -> Sequence[Rows]:
        """The held-out batches."""
        return list(self._heldout)

    @property
    def heldout_bytes(self) -> int:
        """Bytes of the held-out text."""
        return self._heldout.text_bytes

    @cached_property
    def _heldout(self) -> EvalLoader:
        return EvalLoader(self._prepared, HELDOUT_ROWS)
