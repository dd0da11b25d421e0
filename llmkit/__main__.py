"""`python -m llmkit` is the `llmkit` command."""

import sys
from typing import NoReturn

from llmkit.cli import main


def run() -> NoReturn:
    """The command as a process of its own: once it has its exit code, no request to stop changes that."""
    code = main()
    from llmkit.stopping import ignore_requests

    ignore_requests()
    sys.exit(code)


if __name__ == "__main__":
    run()
