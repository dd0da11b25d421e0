"""Checkpoints of other programs are named for what they are, and nothing of them is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from llmkit.checkpoint import read
from llmkit.checkpoint.foreign import foreign
from llmkit.checkpoints.found import find
from llmkit.errors import UserError

FILES = {
    "DeepSpeed (global_step10)": ["latest", "global_step10/mp_rank_00_model_states.pt", "zero_to_fp32.py"],
    "DeepSpeed (mp_rank_00_model_states.pt)": ["mp_rank_00_model_states.pt"],
    "Megatron-LM (latest_checkpointed_iteration.txt)": ["latest_checkpointed_iteration.txt", "iter_1/x"],
    "Accelerate (random_states_0.pkl)": ["optimizer.bin", "random_states_0.pkl"],
    "torch.save (model.pt)": ["model.pt"],
    "torch.save (last.ckpt)": ["last.ckpt", "notes.txt"],
    "Hugging Face's format": ["config.json", "model.safetensors"],
}


@pytest.mark.drill(
    "D37",
    injection="checkpoints of torch DCP, DeepSpeed, Megatron-LM, Accelerate, torch.save, Hugging Face",
    expected="refused by name, with what to do instead",
)
@pytest.mark.parametrize("whose", FILES)
def test_a_checkpoint_of_another_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    for name in FILES[whose]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x80\x04.")
    for look in (read.open, find):
        with pytest.raises(UserError) as refused:
            look(tmp_path)
        message = str(refused.value)
        assert message.startswith(f"{tmp_path}: it holds a ") and whose in message and "\n" not in message
        assert "`llmkit import`" in message


def test_what_torch_itself_writes_is_recognised(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    assert "torch.distributed.checkpoint (.metadata)" in foreign(tmp_path)


def test_a_folder_of_anything_else_is_nobodys(tmp_path: Path, save_step: Any) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "data.txt").touch()
    assert foreign(tmp_path) == "" and foreign(save_step(1)) == "" and foreign(tmp_path / "nothing") == ""
