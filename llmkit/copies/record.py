"""The files of a run folder that make a run one, beside its checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

from llmkit.copies.outgoing import Stored, stored
from llmkit.errors import RunFault
from llmkit.files import open_regular

LINES = ("metrics.jsonl", "events.jsonl", "media.jsonl")
"""Files of one JSON object a line, to which a run appends."""
OTHERS = ("manifest.json", "config.yaml", "DONE", "wandb/run_id", "checkpoints/best.json")
_SETTINGS = re.compile(r"configs/start-\d{4,}\.yaml")


def is_of_record(name: str) -> bool:
    """Whether a file of this name belongs to the record of a run."""
    return name in LINES or name in OTHERS or _SETTINGS.fullmatch(name) is not None


def snapshot(folder: Path) -> list[tuple[Stored, bytes]]:
    """The files of the record as they are now, of which a run may write more meanwhile: whole lines alone.

    Raises RunFault where one cannot be read.
    """
    settings = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("configs/start-*.yaml"))]
    found = []
    for name in (*LINES, *OTHERS, *filter(is_of_record, settings)):
        try:
            with open_regular(folder / name) as file:
                content = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunFault(f"{folder / name}: cannot be read ({error.strerror})") from error
        if name in LINES:
            content = content[: content.rfind(b"\n") + 1]
        if content:
            found.append((stored(name, content), content))
    return found
