"""`llmkit checkpoint verify`: reads all of each checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from llmkit.checkpoint.files import OpenFiles
from llmkit.checkpoint.read import load
from llmkit.checkpoints.found import find
from llmkit.command_line import print_json
from llmkit.config.memory import show_bytes
from llmkit.errors import RunFault, UserError
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import TIMEOUT, process_group


def verify_command(path: Path, quick: bool, environment: Mapping[str, str], *, as_json: bool = False) -> int:
    """Prints each checkpoint at a path with every file and block of it that is damaged; the exit code.

    The ranks of a launch read a share each. quick: only the sizes of files are compared. as_json: one object
    at the end instead of lines. Raises UserError where there are no checkpoints.
    """
    checked = list[dict[str, object]]()
    with process_group(rank_info_from_env(environment), TIMEOUT) as mesh:
        named = json.loads(on_rank_zero(mesh, lambda: json.dumps([str(each) for each in find(path).folders])))
        damaged = 0
        for folder in map(Path, named):
            size, problems = check(folder, mesh, quick)
            if problems and not on_rank_zero(mesh, partial(_name_if_there, folder)):
                continue  # a run that is under way has deleted it meanwhile
            damaged += bool(problems)
            checked.append({"path": str(folder), "good": not problems, "bytes": size, "problems": problems})
            if mesh.rank == 0 and not as_json:
                what = "files of the right sizes, not read" if quick else "every block is as it was written"
                found = f"{len(problems)} damaged" if problems else f"{what}, {show_bytes(size)}"
                print(f"{folder}: {found}")
                print("".join(f"  {problem}\n" for problem in problems), end="", flush=True)
        if mesh.rank == 0 and as_json:
            print_json({"good": not damaged, "quick": quick, "checkpoints": checked})
    return 1 if damaged else 0


def _name_if_there(folder: Path) -> str:
    return folder.name if os.path.lexists(folder) else ""


def check(folder: Path, mesh: Mesh, quick: bool) -> tuple[int, list[str]]:
    """The bytes of a checkpoint, and a line for each file or block of it that is damaged. Collective.

    What cannot be read now, or by this user or this version, counts as damaged.
    """
    size = 0
    try:
        checkpoint = load(folder, OpenFiles())
        size = checkpoint.nbytes
        problems = list(checkpoint.problems(mesh.rank, mesh.world_size, sizes_only=quick))
    except (RunFault, UserError) as error:
        problems = [str(error)]
    found = [json.loads(text) for text in mesh.all_gather_text(json.dumps(problems))]
    return size, list(dict.fromkeys(line for lines in found for line in lines))
