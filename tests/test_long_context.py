"""The page on long context: its commands run one after the other, on fewer records and for fewer steps."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.api import Run, load
from llmkit.batch import Batch
from llmkit.cli import main
from llmkit.config.model_section import RopeScaling
from llmkit.model.rope import rope_tables
from tests.initial_loss import first_batches, loss_of
from tests.limits import HANG

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/long-context.md").read_text()
FEWER = [
    "train.max_steps=2", "kernels.compile=false", "monitor.wandb.mode=disabled", "monitor.report=false",
    "faults.watchdog=false", "train.precision=fp32",
]  # fmt: skip
EXTENSIONS = {
    "yarn": ("yarn", 4.0, 192, 10_000.0),
    "llama3": ("llama3", 4.0, 192, 10_000.0),
    "theta": ("default", None, None, 80_000.0),
}
"""Recipe: type of scaling, factor, old context, base of the frequencies."""


def commands() -> list[list[str]]:
    """The words of each line of the page's first block of sh."""
    block = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)[0]
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture
def trained(project, monkeypatch, capsys) -> list[list[Batch]]:
    """The first batch of each run of the page's commands, which have run in this folder."""
    batches = first_batches(monkeypatch)
    shutil.copytree(ROOT / "configs", project / "configs", dirs_exist_ok=True)
    for program, *words in commands():
        if program == "python":
            given = [sys.executable, *words, "--records", "40"]
            subprocess.run(given, check=True, capture_output=True, timeout=HANG)
        elif words[0] == "train":
            assert main([*words, *FEWER]) == 0, words
        else:
            assert main([*words, "--trials", "1", "--depths", "0,100"]) == 0, words
    return batches


def test_a_model_of_short_texts_is_trained_to_read_longer_ones_by_each_recipe(trained, project, capsys):
    assert "depth" in capsys.readouterr().out and Path("needle.svg").exists()
    run = Run("runs/passkeys-768-yarn")
    assert run.done and [row["step"] for row in run.metrics if "loss" in row] == [1, 2]
    assert run.model().context_length == 768
    yarn = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=192)
    for tables, same in ((rope_tables(768, 32, 1e4, yarn), True), (rope_tables(768, 32, 1e4), False)):
        wanted = loss_of(project / "runs/passkeys-192", tables, trained[1])
        found = next(row["loss"] for row in run.metrics if "loss" in row)
        assert (found == pytest.approx(wanted, rel=1e-6)) is same, "the weights as they were, turned anew"
    for name, (kind, factor, old, theta) in EXTENSIONS.items():
        loaded = load(project / f"configs/long-context/{name}.yaml", [f"run.name=another-{name}"])
        model = loaded.config.model
        scaling = model.rope_scaling
        assert (scaling.rope_type, scaling.factor, scaling.original_max_position_embeddings) == (
            kind, factor, old,
        )  # fmt: skip
        assert model.rope_theta == theta and loaded.config.data.sequence_length == 768
        assert any("the weights were trained with" in each for each in loaded.remarks)
    stored = load(project / "configs/long-context/short.yaml").config
    assert stored.data.sequence_length == 192


def test_the_records_are_the_same_every_time_and_as_long_as_asked(tmp_path):
    script = [sys.executable, str(ROOT / "configs/passkeys.py"), "--length", "300", "--records", "20"]
    for name in ("one", "two"):
        given = [*script, "--out", str(tmp_path / "deep" / name)]
        subprocess.run(given, check=True, capture_output=True, timeout=HANG)
    one, two = ((tmp_path / "deep" / name).read_text() for name in ("one", "two"))
    assert one == two and len(one.splitlines()) == 20
