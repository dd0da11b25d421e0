"""The llmkit command with standard error in a file of its working directory, errors.txt."""

import os

from llmkit.__main__ import run

if __name__ == "__main__":
    os.dup2(os.open("errors.txt", os.O_CREAT | os.O_WRONLY, 0o644), 2)
    run()
