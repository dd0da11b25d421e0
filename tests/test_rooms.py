"""The rooms of the package, from the ground up: a room imports only what stands below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llmkit"
DESIGN = (PACKAGE.parent / "docs/design.md").read_text()
LAYERS = (
    {"errors", "precision", "cores", "extras", "ports", "proc", "command_examples", "error_text"},
    {"files", "file_lock", "registry", "stopping", "batch", "end_file"},
    {"config", "ownership", "build_locks"},
    {"parallel", "data", "run_folder", "command_line", "slurm"},
    {"kernels"},
    {"checkpoint", "optim", "monitor", "plan", "prompts", "completion", "shipped"},
    {"model", "device", "hf", "watch", "watchdog", "copies", "estimate"},
    {"weights"},
    {"engine", "layers", "evaluation_data", "doctor", "cluster"},
    {"inference", "parity", "calibration", "recipes", "report", "checkpoints"},
    {"generation", "preference", "planner"},
    {"evaluation", "config_command"},
    {"loop", "inspect", "serve", "convert"},
    {"train"},
    {"api"},
    {"cli"},
    {"__init__", "__main__"},
)
"""A module or folder of llmkit each; those of one layer do not know each other."""


def imports(path: Path) -> Iterator[str]:
    """The modules of llmkit that a module imports when it runs, in functions too."""
    tree = ast.parse(path.read_text())
    only_types = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llmkit."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("llmkit."))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_its_layer() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} == set().union(*LAYERS)


def test_rooms_import_only_what_stands_below_them() -> None:
    height = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for module in imports(path)
        if (room := module.split(".")[1]) != room_of(path) and height[room] >= height[room_of(path)]
    ]
    assert wrong == []


def test_the_drawing_of_the_rooms_is_true() -> None:
    drawing = DESIGN.split("## The rooms")[1].split("```")[1].strip().splitlines()
    drawn = [set(line.split("   ")[0].split(", ")) for line in drawing]
    assert drawn == list(reversed(LAYERS))


def test_files_that_the_design_names_are_there() -> None:
    named = set(re.findall(r"`(?:llmkit/)?([a-z0-9_/]+/[a-z0-9_]+\.py|[a-z_]+\.py)`", DESIGN))
    assert len(named) > 50
    roots = (PACKAGE, PACKAGE.parent, PACKAGE / "loop", PACKAGE / "data")
    assert [name for name in sorted(named) if not any((root / name).is_file() for root in roots)] == []
