"""How often a resume reads each byte, whoever wrote the checkpoint."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from benchmarks.checkpoint_reads import KINDS, Ranks, gpt, resume, save
from llmkit.checkpoint import files, format, index_file


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1]], ids=["all", "masters"])
def test_one_process_reads_a_checkpoint_of_many_ranks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    for module in (format, files, index_file):
        monkeypatch.setattr(module, "BLOCK", 1024)
    model, writers = gpt(24, 3), Ranks(12, 2)
    folder = tmp_path / "step-00000001"
    save(folder, model, writers)
    stored = sum(path.stat().st_size for path in folder.glob("pieces-*"))
    reads = resume(folder, model, Ranks(1, 1), kinds)
    assert stored < reads.by_nodes < reads.by_ranks < 2 * reads.by_nodes  # all is verified, then read once
    assert reads.needed == len(kinds) * 4 * sum(prod(shape) for shape, _ in model.values())
    same = resume(folder, model, writers, kinds)
    assert same.needed > reads.needed  # replicated norms are read by each tensor-parallel rank
    assert same.most < stored / 4 and same.by_nodes < 1.5 * stored
