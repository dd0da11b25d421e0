"""The script of a job: slurm/train.sbatch with the options and settings of this job in it.

All that SLURM gets is in the script, which can be shown, saved, and submitted by hand. Each value in it is
on one line, as was checked, and is a word in quotes, of which neither sbatch nor a shell takes a part for its
own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmkit.cluster.fields import option_line

MARK = "# llmkit submit writes the settings of its job below this line."
_OPTION = re.compile(r"#SBATCH --([a-z-]+)")
_VARIABLE = re.compile(r"^#   ([A-Z][A-Z_]+)  ", re.MULTILINE)


def template() -> str:
    """slurm/train.sbatch, which the package holds, too."""
    return Path(__file__).with_name("train.sbatch").read_text()


def script_variables(script: str) -> list[str]:
    """Variables of the environment that the script's head says it reads."""
    return _VARIABLE.findall(script)


def render(
    script: str,
    options: Mapping[str, str | None],
    removed: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    tasks: Sequence[Sequence[str]] = (),
) -> str:
    """The script of a job.

    options: of sbatch, each with its value, None for one without. removed: those of the template that go.
    variables: for the script. arguments: CONFIG and overrides. tasks: of an array, further overrides of each.
    """
    head, body = script.split(MARK + "\n")
    settings = [f"export {name}={shlex.quote(value)}" for name, value in (variables or {}).items()]
    settings.append(_set(*map(shlex.quote, arguments), '"$@"'))
    if tasks:
        settings += _cases(tasks)
    lines = _with_options(head.splitlines(), options, removed)
    return "\n".join([*lines, MARK, *settings, body])


def _with_options(
    lines: Sequence[str], options: Mapping[str, str | None], removed: Sequence[str]
) -> list[str]:
    """The head of the script: an option takes the line that the template has for it, or a new one."""
    left, written, behind = dict(options), list[str](), 0
    for line in lines:
        name = found[1] if (found := _OPTION.match(line)) else ""
        if name in removed:
            continue
        written.append(option_line(name, left.pop(name)) if name in left else line)
        if name and behind in (0, len(written) - 1):
            behind = len(written)  # the end of the first block of options
    written[behind:behind] = [option_line(name, value) for name, value in left.items()]
    return written


def _set(*words: str) -> str:
    """A command that makes these words the script's arguments."""
    return " \\\n  ".join(["set --", *words]) if len(words) > 3 else " ".join(["set --", *words])


def _cases(tasks: Sequence[Sequence[str]]) -> list[str]:
    """Lines that add a task's own overrides."""
    lines = ['case "${SLURM_ARRAY_TASK_ID-}" in']
    for number, overrides in enumerate(tasks):
        lines.append(f'  {number}) set -- "$@" {shlex.join(overrides)} ;;')
    lines.append(f'  *) say "this script is for the tasks of --array=0-{len(tasks) - 1}"; exit 2 ;;')
    return [*lines, "esac"]


def shown_part(script: str) -> str:
    """What of a script is of this job alone: its options and settings."""
    head, body = script.split(MARK + "\n")
    options = [line for line in head.splitlines() if line.startswith("#SBATCH")]
    return "\n".join([*options, body.partition("\n\n")[0]])
