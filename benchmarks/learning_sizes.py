"""The sizes at which recipes are compared, and the text that all contenders train on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.workloads import ROOT
from llmkit.batch import Rows
from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.data.building.prepare import prepare
from llmkit.data.evaluation import HeldOut
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import Prepared
from llmkit.errors import UserError

DEMO = ROOT / "configs" / "demo.yaml"
HELDOUT_ROWS = 16
"""Rows of a held-out batch."""
VOCABULARY_MULTIPLE = 64
"""A peer's vocabulary is padded to a multiple of this, as llmkit's is."""


@dataclass(frozen=True)
class Size:
    """A shape of the peers, and how much text they see.

    kv_heads: of the contenders that share key and value heads. vocabulary: tokens that the tokenizer is
    trained to. length: tokens of a row. rows: of a step. steps: of the run at equal tokens. overrides: what
    llmkit's settings are beside those of configs/demo.yaml and the shape of the data.
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
    overrides: tuple[str, ...] = ()

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.length

    @property
    def tokens(self) -> int:
        """Tokens of the run at equal tokens."""
        return self.steps * self.step_tokens

    def config(self, seed: int, steps: int, cache: Path) -> Config:
        """llmkit's settings: the recipe, and the data of everybody. cache: where tokens are kept."""
        overrides = [
            f"run.seed={seed}",
            f"train.max_steps={steps}",
            "train.max_minutes=null",
            f"train.global_batch_size={self.rows}",
            f"train.micro_batch_size={self.rows}",
            f"data.sequence_length={self.length}",
            f"data.tokenizer.vocab_size={self.vocabulary}",
            f"data.cache_dir={cache}",
            *self.overrides,
        ]
        return load(DEMO, overrides).config


def _with_shape(
    name: str, shape: tuple[int, int, int, int], rest: tuple[int, int, int, int], *further: str
) -> Size:
    """A size at which llmkit, too, has the shape (layers, width, heads, heads of keys and values)."""
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    overrides = [f"model.{key}={value}" for key, value in zip(keys, shape, strict=True)]
    return Size(name, *shape, *rest, overrides=(*overrides, "model.intermediate_size=null", *further))


SIZES = {
    each.name: each
    for each in (
        Size("demo", 4, 192, 3, 1, vocabulary=4096, length=256, rows=8, steps=1361),
        _with_shape("5m", (6, 256, 4, 2), (4096, 512, 8, 900)),
        _with_shape("14m", (6, 384, 6, 6), (8192, 256, 16, 900)),
    )
}
TOY = _with_shape(
    "toy", (2, 64, 2, 1), (257, 32, 4, 8),
    "data.tokenizer.type=bytes", "data.tokenizer.vocab_size=null", "schedule.warmup_steps=2",
    f"data.sources=[{{type: text, path: '{ROOT}/benchmarks/*.py'}}]",
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

    def __init__(self, size: Size, cache: Path, report=lambda line: None) -> None:
        self.size = size
        self._cache = cache
        self._prepared: Prepared = prepare(size.config(0, size.steps, cache).data, report)

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
    def _heldout(self) -> HeldOut:
        return HeldOut(self._prepared, HELDOUT_ROWS)
