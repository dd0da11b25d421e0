"""What was found and written when a source, or a part of it, was built."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict

from llmkit.data.prepared import shown_size


class BuildStats(BaseModel):
    """Figures of a source, or of a part of it.

    records: all of them, those that were left out too. text_bytes: UTF-8 bytes of all the text, also of that
    which is not to be learned. left_out: records that were left out or mended, by reason. slow_reason: why
    the fast tokenizer was not at work, if it was not. Set for a part only: blocks, of each the documents and
    the bytes of text to learn, to train on and held out. For a source only: documents, heldout_documents and
    tokens; fitting: with best_fit, documents to train on that are no longer than a row; cut: how many of
    these a row's end cuts all the same; duplicates, heldout_in_train: as in `duplicates.Copies`.
    """

    model_config = ConfigDict(extra="forbid")
    records: int = 0
    text_bytes: int = 0
    left_out: Counter[str] = Counter()
    slow_reason: str | None = None
    blocks: list[tuple[tuple[int, int], tuple[int, int]]] = []
    documents: int = 0
    heldout_documents: int = 0
    tokens: int = 0
    fitting: int = 0
    cut: int = 0
    duplicates: int = 0
    heldout_in_train: int = 0

    def add_part(self, part: BuildStats) -> None:
        """Count what a part found."""
        self.records += part.records
        self.text_bytes += part.text_bytes
        self.left_out += part.left_out
        self.slow_reason = part.slow_reason or self.slow_reason

    def line(self, seconds: float, workers: int, was_begun: bool) -> str:
        """How a source was built, for the user. was_begun: some of it by an earlier build."""
        how = [f"{workers} processes"] if workers else []
        if not was_begun:
            how.insert(0, f"{shown_size(self.text_bytes / max(seconds, 1e-3), decimals=1)}/s")
        if self.slow_reason:
            how.append(f"without the fast tokenizer: {self.slow_reason}")
        parts = [
            f"{self.documents + self.heldout_documents:,} documents, {self.tokens:,} tokens of "
            f"{shown_size(self.text_bytes)} of text in {seconds:.1f} s" + f" ({', '.join(how)})" * bool(how)
        ]
        if self.duplicates:
            copies = "document is an exact copy of another"
            if self.duplicates > 1:
                copies = "documents are exact copies of others"
            parts.append(f"{self.duplicates:,} {copies}")
        if self.heldout_in_train:
            parts.append(f"{self.heldout_in_train:,} of the held-out ones are trained on, too")
        if self.fitting:
            parts.append(f"rows cut {self.cut:,} of {self.fitting:,} documents that fit")
        return "; ".join(parts)
