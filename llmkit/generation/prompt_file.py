"""Files of prompts for `llmkit generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmkit.errors import UserError

Messages = list[dict[str, str]]
"""A chat so far: `role` and `content` of each message."""
MOST_BYTES = 1 << 30
"""Of a file of prompts."""


def read_prompts(path: Path) -> list[str | Messages]:
    """The prompts of a file: its lines, or of a .jsonl each one's `prompt` or `messages`; no empty ones.

    Raises UserError, with the line, where the file is not that.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: is larger than 1 GiB; split it")
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a file of prompts") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: is not UTF-8; convert the file") from error
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: has no prompt; write one a line")
    if path.suffix != ".jsonl":
        return [line.rstrip("\r") for _, line in lines]
    return [_prompt(line, f"{path}:{number}") for number, line in lines]


def _prompt(line: str, where: str) -> str | Messages:
    """The prompt of a line of JSON."""
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: has half a character, a lone surrogate; correct the line") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON ({str(error)[:100]}); write an object with prompt") from error
    if isinstance(record, str):
        return record
    record = record if isinstance(record, dict) else {}
    if isinstance(record.get("prompt"), str) and "messages" not in record:
        return str(record["prompt"])
    if "prompt" not in record and (messages := _messages(record.get("messages"))):
        return messages
    raise UserError(
        f"{where}: has neither a text as prompt nor a list of messages, each with a text as role and as "
        "content; give one of both"
    )


def _messages(value: Any) -> Messages | None:
    """A list of messages, none empty; None where it is something else."""
    if not isinstance(value, list):
        return None
    found = [
        {"role": each["role"], "content": each["content"]}
        for each in value
        if isinstance(each, dict)
        and set(each) == {"role", "content"}
        and all(isinstance(text, str) for text in each.values())
    ]
    return found if len(found) == len(value) else None
