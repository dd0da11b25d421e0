"""The watchdog: a process beside each rank that notices when it dies, hangs or falls behind.

The rank's side is `watch.py`. The process itself (`process.py` and what it imports) must not import torch,
nor anything else that is slow to import.
"""
