"""`python -m llmkit` is the `llmkit` command."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from llmkit.cli import main


def run() -> NoReturn:
    """The command as a process of its own: once it has its exit code, no request to stop changes that."""
    code = main()
    from llmkit.stopping import ignore_requests

    ignore_requests()
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        # All is written and closed. A thread of gloo may still let go of the last tensor: where the
        # interpreter is ending by then, the process aborts ("terminate called without an active exception").
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
