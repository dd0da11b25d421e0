"""`llmkit doctor --report [RUN]`: one page on a machine and a run, for whoever is asked about a problem."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmkit.config.mistakes import NOT_SHOWN, is_secret, printable
from llmkit.config.redaction import Redactor, is_secret_variable
from llmkit.doctor.findings import Report
from llmkit.doctor.table import machine_lines
from llmkit.errors import UserError
from llmkit.run_folder import CONFIGS

TAIL = 64 * 1024
"""Bytes from the end of a file that are looked at."""
LONGEST = 2000
"""Characters of a line, which may be of any length: an event may hold a traceback."""
LINES = {"events.jsonl": 40, "metrics.jsonl": 5}
"""How many of their last lines are shown."""
WHOLE = ("config.yaml", "manifest.json")
NEWEST = {"logs": 40, "logs/stacks-*": 200}
"""Folders of a run, the newest file of which is shown, by its last lines."""
_AUTHORIZATION = re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE)
_NAME = re.compile(r"""(?:(?<![\w.\\-])|(?<=\\[ntr]))([A-Za-z_][\w.-]*)\\*["']?\s*[:=]\s*""")
"""What stands before a value. A name begins where a word does, so that a long line is searched once, or
behind `\\n`, as JSON writes the end of a line."""
_VALUE = re.compile(r"""\\*"(?:[^"\\]|\\[^"]|\\"(?!\s*[,}\]]))*|'[^']*|[^\s,;}\]&"'][^,;}\]&]*""")
"""One without quotes goes on to the next comma."""


def check_run_folder(run: Path) -> None:
    """Raises UserError where it is none."""
    if not (run / CONFIGS).is_dir() and not (run / "config.yaml").exists():
        raise UserError(f"doctor: {run} is no run folder: it has no config.yaml; name one, such as runs/demo")


def problem_report(report: Report, run: Path | None, environment: Mapping[str, str]) -> Iterator[str]:
    """The lines of the page, as Markdown, without what gives access.

    report: of this machine. run: a run folder. Raises UserError where that is none.
    """
    yield f"# llmkit on {printable(report.node, 80)}"
    yield from ("", "What was done, what was expected, what happened instead:", "", "...", "")
    yield from _block("The machine: `llmkit doctor`", machine_lines(report))
    if run is None:
        return
    check_run_folder(run)
    redactor = Redactor(environment)
    for name in WHOLE:
        yield from _block(f"`{name}`", _last_lines(run / name, redactor))
    for name, count in LINES.items():
        yield from _block(f"`{name}`, its end", _last_lines(run / name, redactor, count))
    for pattern, count in NEWEST.items():
        for file in _newest(run, pattern):
            name = file.relative_to(run).as_posix()
            yield from _block(f"`{printable(name, 200)}`, its end", _last_lines(file, redactor, count))


def _block(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield from (f"## {title}", "", "````text", *(line.replace("````", "'''''") for line in lines), "````", "")


def _newest(run: Path, pattern: str) -> list[Path]:
    """The file that was written last in the folders that match, if there is one; links are not followed."""
    files = [
        file
        for folder in run.glob(pattern)
        if folder.is_dir() and not folder.is_symlink()
        for file in folder.iterdir()
        if file.is_file() and not file.is_symlink()
    ]
    return sorted(files, key=lambda file: file.stat().st_mtime)[-1:]


def _last_lines(file: Path, redactor: Redactor, count: int | None = None) -> Iterator[str]:
    """The last `count` lines of a file; all, as far as they lie in its last TAIL bytes, for None."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - TAIL))
            lines = opened.read(TAIL).decode(errors="replace").splitlines()
    except OSError as error:
        yield f"(cannot be read: {error.strerror})"
        return
    cut = size > TAIL
    if cut:
        lines = lines[1:]  # of the first one the beginning may be missing
    if cut or (count is not None and len(lines) > count):
        yield "[...]"
    for line in lines if count is None else lines[-count:]:
        yield printable(_without_named(redactor.text(line)), LONGEST)


def _without_named(line: str) -> str:
    """A line of any text without the values that a name before them marks as secrets."""
    line = _AUTHORIZATION.sub(rf"\1 {NOT_SHOWN}", line)
    shown, end = list[str](), 0
    for found in _NAME.finditer(line):
        value = _VALUE.match(line, found.end()) if _marks_secret(found[1]) else None
        if value is None or found.start() < end:
            continue  # or in the value of the name before
        quote = value[0][0] if value[0][0] in "\"'" else ""
        shown += [line[end : found.end()], quote, NOT_SHOWN]
        end = value.end()
    return "".join([*shown, line[end:]])


def _marks_secret(name: str) -> bool:
    variable = name.isupper() and is_secret_variable(name)
    return variable or is_secret(name) or name.lower().endswith("authorization")
