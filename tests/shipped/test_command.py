"""`llmkit launch-files`, and the wheel that it must work from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.file_text import SHIPPED_FOLDERS
from llmkit.config.load import load
from llmkit.shipped.command import shipped_files
from tests.limits import HANG

ROOT = Path(__file__).parents[2]


def tracked() -> set[str]:
    """The files of these folders that the repository has."""
    names = subprocess.run(["git", "ls-files", *SHIPPED_FOLDERS], cwd=ROOT, capture_output=True, text=True)
    return set(names.stdout.split())


def test_the_files_are_written_and_are_those_of_the_repository(tmp_path, capsys):
    assert main(["launch-files", str(tmp_path / "new")]) == 0
    written = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.*")}
    assert {"configs/demo.yaml", "launch/zero2.yaml", "slurm/train.sbatch"} <= written
    assert load(tmp_path / "new/configs/recipes/gpt2-124m.yaml").config.run.name
    assert f"{len(list(shipped_files()))} files" in capsys.readouterr().out
    script = tmp_path / "new/slurm/local-cluster.sh"
    assert script.stat().st_mode & 0o100


def test_programs_get_the_files_and_which_are_new(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs/demo.yaml", tmp_path / "configs")
    assert main(["launch-files", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    written = {each["path"]: each["written"] for each in found["files"]}
    assert len(written) == len(list(shipped_files())) and all(map(os.path.isfile, written))
    assert [path for path, new in written.items() if not new] == [f"{tmp_path}/configs/demo.yaml"]
    assert found["folder"] == str(tmp_path)


def test_files_of_ones_own_are_never_replaced(tmp_path, capsys):
    mine = tmp_path / "configs/demo.yaml"
    mine.parent.mkdir()
    mine.write_text("run: {name: mine}\n")
    assert main(["launch-files", str(tmp_path)]) == 2
    assert "other files of these names: configs/demo.yaml; name a new folder" in capsys.readouterr().err
    assert mine.read_text() == "run: {name: mine}\n" and not (tmp_path / "launch").exists()
    mine.unlink()
    assert main(["launch-files", str(tmp_path)]) == main(["launch-files", str(tmp_path)]) == 0


def test_in_a_checkout_they_are_there_already(capsys):
    assert main(["launch-files", str(ROOT)]) == 0
    assert f"{len(list(shipped_files()))} files" in capsys.readouterr().out


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel of this commit."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("llmkit", *SHIPPED_FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    (source / "configs/__pycache__").mkdir()
    (source / "configs/__pycache__/passkeys.cpython-311.pyc").write_bytes(b"compiled")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as content:
        return set(content.namelist())


def test_a_wheel_holds_configurations_launch_files_and_scripts(wheel):
    inside = {name.removeprefix("llmkit/shipped/") for name in wheel if name.startswith("llmkit/shipped/")}
    ours = tracked() or {str(path) for path in shipped_files()}
    assert ours and ours <= inside, sorted(ours - inside)


def test_a_wheel_holds_all_of_the_package_and_no_tests(wheel):
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "llmkit").rglob("*.py")}
    assert {name for name in package if "/shipped/" not in name} <= wheel
    assert {"llmkit/py.typed", "llmkit/cluster/train.sbatch", "llmkit/report/page.html"} <= wheel
    assert not any(name.startswith(("tests/", "configs/", "build/")) for name in wheel)
    assert not any(name.endswith(".pyc") for name in wheel)
