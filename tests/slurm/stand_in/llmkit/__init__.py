"""The real package, but for the command line, where only the batch script is tested."""

from pathlib import Path

__version__ = "0"
__path__.append(str(Path(__file__).parents[4] / "llmkit"))
