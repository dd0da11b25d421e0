"""Every command of docs/tutorial.md runs, in its order, with fewer steps; the site is whole."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.limits import HANG

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/tutorial.md").read_text()
SMALLER = [
    "model.num_hidden_layers=1", "model.hidden_size=32", "model.head_dim=8", "model.intermediate_size=32",
    "kernels.compile=false", "data.sequence_length=64", "data.tokenizer.vocab_size=300",
    "monitor.wandb.mode=disabled",
]  # fmt: skip
OF_WEIGHTS = ["kernels.compile=false", "data.sequence_length=64", "monitor.wandb.mode=disabled"]
"""The same for a run whose model comes with its weights."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def test_the_tutorial_can_be_done_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    for content in blocks("yaml"):
        Path(re.match(r"# (\S+)\n", content)[1]).write_text(content)  # type: ignore[index]
    steps = 2
    for line in [line for block in blocks("sh") for line in block.splitlines()]:
        words = shlex.split(line, comments=True)
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, timeout=HANG)
        elif words[0] == "touch":
            Path(words[1]).touch()
        elif words[0] == "accelerate":  # that such launches train is tested in tests/launch
            assert (ROOT / words[words.index("--config_file") + 1]).exists()
            assert main(["config", *words[words.index("train") + 1 :], *SMALLER]) == 0
        else:
            command = words[1:]
            assert words[0] == "llmkit"
            if command[0] in ("config", "data"):
                command += SMALLER
            if command[0] == "train":
                steps += 2
                command += [*(OF_WEIGHTS if "chat.yaml" in command else SMALLER), f"train.max_steps={steps}"]
            code = main(command)
            assert code == 0, (line, capsys.readouterr().err)
    printed = capsys.readouterr().out
    assert "gives llmkit's logits" in printed and "bits per byte" in printed
    assert not Path("runs/first/STOP").exists()


def test_every_page_is_on_the_site_once_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site.py")
    assert spec is not None and spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    written = site.write_pages(tmp_path)
    assert len(written) == len(set(written))
    listed = re.findall(r'= "([^"]+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = sorted(path.name for path in tmp_path.glob("*.md"))
    assert sorted(listed) == pages, "the navigation of zensical.toml lacks a page, or names it twice"
    for page in tmp_path.rglob("*.md"):
        for target in site.LINK.findall(page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for name in (
        "configs",
        "benchmarks",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "LICENSE",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")  # beside which the script makes the site
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    made = subprocess.run(
        [sys.executable, "docs/site.py"], cwd=tmp_path, capture_output=True, text=True, timeout=HANG
    )
    assert made.returncode == 0, made.stdout + made.stderr
    page = (tmp_path / "build/site/html/tutorial.html").read_text()
    assert "From your own text" in page
    assert not re.findall(r'(?:src|href)="https?://[^"]*(?:googleapis|gstatic|cdn)', page)
