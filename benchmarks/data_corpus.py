"""What the data benchmark reads: text that every machine has, a tokenizer of it, and its tokens.

The text is the Python interpreter's library and its installed packages, cut into documents. The same
machine gets the same bytes every time.
"""

from __future__ import annotations

import json
import math
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

LENGTH = 2048
ROWS = 16
"""Of a batch."""
WIDTH = LENGTH + 1
"""Tokens of a block for those that keep blocks: the inputs and the last one's label."""
PARTS = 16
"""Files of a data set."""

VOCAB_SIZE = 32_768
END_OF_TEXT = "<|endoftext|>"
TEXT_CHARACTERS = 90_000_000
TOKENIZER_CHARACTERS = 16_000_000
"""Text that the tokenizer is trained on."""
MEDIAN_CHARACTERS, SPREAD = 2700, 0.98
"""Documents are log-normally long: this median, and this standard deviation of the logarithm."""


@dataclass(frozen=True)
class Facts:
    """Of a corpus. tokens: in tokens.bin; text_tokens: those of its beginning that are the text once."""

    documents: int
    text_bytes: int
    text_tokens: int
    tokens: int
    vocab_size: int
    end_of_text_id: int


def make_corpus(folder: Path, tokens: int) -> Facts:
    """Fill `folder`: text/part-NN.jsonl, tokenizer/, tokens.bin (uint16), facts.json.

    tokens.bin: end-of-text, then each document and end-of-text; the text once and again, in another order
    each time, until it is `tokens` long or a document longer.
    """
    from llmkit.config import schema
    from llmkit.data.tokens.make_tokenizer import make_tokenizer

    texts = list(documents(min(TEXT_CHARACTERS, 3 * tokens)))
    (folder / "text").mkdir(parents=True)
    for part in range(PARTS):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[part::PARTS])
        (folder / "text" / f"part-{part:02}.jsonl").write_text("".join(lines), encoding="utf-8")

    share = max(1, len(texts) * TOKENIZER_CHARACTERS // max(TOKENIZER_CHARACTERS, sum(map(len, texts))))
    spec = schema.Tokenizer(vocab_size=VOCAB_SIZE, end_of_text=END_OF_TEXT)
    tokenizer = make_tokenizer(spec, texts[:share])
    tokenizer.save(folder / "tokenizer")

    ids: list[np.ndarray] = []
    for first in range(0, len(texts), 256):
        ids += [each.astype(np.uint16) for each in tokenizer.encode_batch(texts[first : first + 256])]
    end = np.array([tokenizer.end_of_text_id], dtype=np.uint16)
    once = 1 + sum(each.size + 1 for each in ids)
    written, order = 1, list(range(len(ids)))
    with (folder / "tokens.bin").open("wb") as file:
        file.write(end.tobytes())
        while written < max(tokens, once):
            for number in order:
                file.write(ids[number].tobytes() + end.tobytes())
                written += ids[number].size + 1
                if written >= max(tokens, once):
                    break
            random.Random(written).shuffle(order)
    facts = Facts(
        documents=len(texts),
        text_bytes=sum(len(text.encode()) for text in texts),
        text_tokens=once,
        tokens=written,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
    )
    (folder / "facts.json").write_text(json.dumps(asdict(facts)))
    return facts


def read_facts(folder: Path) -> Facts:
    """What `make_corpus` wrote."""
    return Facts(**json.loads((folder / "facts.json").read_text()))


def stream(folder: Path) -> np.ndarray:
    """tokens.bin by memory map, uint16."""
    return np.memmap(folder / "tokens.bin", dtype="<u2", mode="r")


def blocks(folder: Path) -> np.ndarray:
    """The stream in blocks of WIDTH that share no token, (blocks, WIDTH)."""
    tokens = stream(folder)
    return tokens[: tokens.size // WIDTH * WIDTH].reshape(-1, WIDTH)


def documents(characters: int) -> Iterator[str]:
    """Documents of `characters` in all, or a few more: sources cut at line ends.

    Where the sources do not suffice they are gone through again, and cut at other places.
    """
    chance = random.Random(0)
    files = _source_files()
    while True:
        before = characters
        chance.shuffle(files)
        for path in files:
            for text in _cut(path, chance):
                yield text
                characters -= len(text)
                if characters <= 0:
                    return
        assert characters < before, "no source text on this machine"


def _source_files() -> list[Path]:
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    own = [path for path in library.rglob("*.py") if "site-packages" not in path.parts]
    return sorted(own) + sorted(packages.rglob("*.py"))


def _cut(path: Path, chance: random.Random) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if END_OF_TEXT in text:  # tokenizers differ in what they make of it in a text
        return
    start = 0
    while start < len(text):
        size = math.ceil(chance.lognormvariate(math.log(MEDIAN_CHARACTERS), SPREAD))
        end = text.find("\n", start + size) + 1 or len(text)
        if text[start:end].strip():
            yield text[start:end]
        start = end
