"""Options of sbatch: which there are, what their values look like, how they are written into a script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NAMES = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(,[A-Za-z0-9_][A-Za-z0-9_.+-]*)*"
HOSTS = r"[A-Za-z0-9_][A-Za-z0-9_.\[\],-]*"
JOB_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LONGEST = 1000
"""Characters of a value; the controller takes 1,024 of most."""
DECIDED = (
    "array", "chdir", "clusters", "comment", "error", "export", "export-file", "gid", "gpus", "gpus-per-node",
    "job-name", "nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "parsable", "quiet",
    "requeue", "test-only", "uid", "wait", "wrap",
)  # fmt: skip
"""Options that llmkit itself decides, or that would make the job another one."""
_PLAIN = re.compile(r"[A-Za-z0-9._/:=,@%+\[\]-]+")


class Field(NamedTuple):
    """An option of sbatch. pattern: of its value, whole. metavar, example, help: for people."""

    name: str
    metavar: str
    pattern: str
    example: str
    help: str


FIELDS = (
    Field("time", "LIMIT", r"\d+(:\d{2}){0,2}|\d+-\d+(:\d{2}){0,2}", "24:00:00", "time limit"),
    Field("partition", "NAMES", NAMES, "gpu", "where to run"),
    Field("account", "NAME", NAMES, "lab-7", "who is charged"),
    Field("qos", "NAME", NAMES, "long", "quality of service"),
    Field("exclude", "NODES", HOSTS, "n[3,7-9]", "nodes that are not taken"),
    Field("nodelist", "NODES", HOSTS, "n[1-4]", "nodes that are taken; a sick one is then kept"),
    Field("mem", "SIZE", r"\d+[KMGTkmgt]?", "200G", "memory of each node"),
    Field("cpus-per-task", "N", r"[1-9]\d*", "16", "cores of each node"),
    Field(
        "dependency", "WHEN",
        r"[a-z]+(:\d+(_(\d+|\*))?(\+\d+)?)*([,?][a-z]+(:\d+(_(\d+|\*))?(\+\d+)?)*)*",
        "afterok:1234", "jobs that come before, or singleton",
    ),
)  # fmt: skip


def wrong_value(field: Field, value: str) -> str | None:
    """What is wrong with the value of an option, as a sentence; None where nothing is."""
    if len(value) <= LONGEST and re.fullmatch(field.pattern, value, re.ASCII):
        return None
    from llmkit.config.mistakes import display  # not at the top: every command reads this file

    return f"--{field.name}: {display(value)} is not of its form, such as {field.example}"


def further_options(words: Sequence[str]) -> Iterator[tuple[str, str | None, str | None]]:
    """(name, value, what is wrong) of each `--name=value` for sbatch; a value of None: it has none."""
    for word in words:
        found = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.+))?", word, re.DOTALL)
        if found is None:
            from llmkit.config.mistakes import display

            yield "", None, f"--sbatch-option: {display(word)} is no option such as --licenses=disk"
            continue
        name, value = found[1], found[2]
        wrong = None
        # Of its options getopt takes a beginning, too.
        if decided := next((option for option in DECIDED if option.startswith(name)), None):
            wrong = f"--sbatch-option: llmkit itself decides about sbatch's --{decided}; leave --{name} out"
        elif value is not None and (what := unfit_for_scripts(value)):
            wrong = f"--sbatch-option: --{name} {what}"
        yield name, value, wrong


def unfit_for_scripts(text: str, longest: int = LONGEST) -> str | None:
    """Why a text cannot stand on a line of a batch script, as a part of a sentence; None where it can."""
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text):
        return "has a line break or another control character in it; write it on one line"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "holds bytes that are no UTF-8"
    if len(text) > longest:
        return f"is longer than {longest:,} characters"
    return None


def option_line(name: str, value: str | None) -> str:
    """The line of a batch script that gives sbatch an option; value None: an option without one.

    sbatch reads quotes and backslashes in such lines as a shell does, and a `#` as the begin of a comment.
    """
    if value is None:
        return f"#SBATCH --{name}"
    if not _PLAIN.fullmatch(value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={value}"
