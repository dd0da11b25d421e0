"""Checkpoints of other programs: recognised by the names of their files, which are not opened."""

from __future__ import annotations

from pathlib import Path

_PROGRAMS = {
    "PyTorch's torch.distributed.checkpoint": (".metadata", "*.distcp"),
    "DeepSpeed": (
        "global_step*", "mp_rank_*_model_states.pt", "zero_pp_rank_*_optim_states.pt", "zero_to_fp32.py",
    ),
    "Megatron-LM": ("latest_checkpointed_iteration.txt", "mp_rank_*/model_optim_rng.pt"),
    "Accelerate": ("random_states_*.pkl",),
    "torch.save": ("*.pt", "*.pth", "*.ckpt"),
}  # fmt: skip
"""Who writes files of these names."""


def foreign(folder: Path) -> str:
    """Whose checkpoint a folder holds and what to do with it, one clause; "" where it looks like nobody's."""
    has_weights = any(next(folder.glob(each), None) for each in ("*.safetensors", "*.bin"))
    if has_weights and (folder / "config.json").is_file():
        return (
            "it holds a model in Hugging Face's format, not a checkpoint of a run; `llmkit import` makes one "
            "of it"
        )
    for program, patterns in _PROGRAMS.items():
        for pattern in patterns:
            if (name := next((path.name for path in sorted(folder.glob(pattern))), None)) is not None:
                return (
                    f"it holds a checkpoint of {program} ({name}), which llmkit does not read; export its "
                    "weights to Hugging Face's format with that program, then `llmkit import` them"
                )
    return ""
