"""The argument RUN of commands that use weights; imported by every command, so nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmkit.command_line import LOADING, waiting_for


def weights_at(run: str, environment: Mapping[str, str]) -> Path:
    """What RUN names; of a URL the folder in this user's cache that the checkpoint is fetched into.

    A command calls it when its options are known to be right, for it imports PyTorch, which takes seconds,
    and says so on a terminal. environment: tells the kind of terminal, and the folder of caches. Raises
    UserError, or RunFault, for a URL that gives no checkpoint.
    """
    with waiting_for(LOADING, environment):
        import torch  # noqa: F401
    if "://" not in run:
        return Path(run)
    from llmkit.checkpoints.fetching import at_hand

    return Path(at_hand(run, environment))
