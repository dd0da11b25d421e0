"""What each rank runs for tests of `llmkit generate` in several processes."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence

from torch.distributed import TCPStore

from llmkit.cli import main


def commands(calls: Sequence[list[str]]) -> list[tuple[int, str, str]]:
    """The exit code, the output and the notes of each command.

    As under torchrun the store where the ranks meet outlives each command.
    """
    if os.environ["RANK"] == "0":
        port = int(os.environ["MASTER_PORT"])
        _kept = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    found = []
    for call in calls:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(call)
        found.append((code, out.getvalue(), err.getvalue()))
    return found
