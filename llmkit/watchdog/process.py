"""Starts the watching process. A script of its own, run without Python's `site`, which takes long to import.

    python -I -S process.py SOCKET < orders

SOCKET: the number of a descriptor that is connected to the rank. The orders are JSON (`watch.py`).
"""

import json
import socket
import sys


def main() -> None:
    """Watches a rank until it has ended."""
    orders = json.load(sys.stdin)
    sys.path[:] = [orders["package"], *orders["path"]]
    from llmkit.watchdog.watcher import Watcher

    Watcher(socket.socket(fileno=int(sys.argv[1])), orders).run()


if __name__ == "__main__":
    main()
