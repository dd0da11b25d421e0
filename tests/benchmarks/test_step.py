"""The step benchmark at a toy size: every contender is measured, and what fails is never called slow."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compare, contenders, step
from benchmarks.alone import Alone, measure_here, run_alone
from benchmarks.workloads import ROOT
from tests.limits import HANG

CPU = torch.device("cpu")
TOY = ["--shapes", "toy", "--steps", "2", "--warmup", "1", "--rounds", "2", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs on a GPU, and no process is started for each contender."""

    def in_this_process(workload: str, contender: str, precision: str, compile_cache: Path) -> Alone:
        return measure_here(workload, contender, precision, CPU)

    monkeypatch.setattr(compare, "run_alone", in_this_process)
    monkeypatch.setattr(step, "choose_device", lambda: CPU)


def table_rows(page: str) -> dict[str, list[str]]:
    """Contender -> the cells behind its name."""
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in page.splitlines()
        if line[:1] == "|"
    ]
    return {row[0]: row[1:] for row in rows[2:]}


def numbers(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r"\d+(?:\.\d+)?", cell.replace(",", ""))]


def test_a_toy_run_measures_every_contender_and_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step.main([*TOY, "--out", str(tmp_path / "new" / "folder")]) == 0

    (file,) = (tmp_path / "new" / "folder").iterdir()
    page = file.read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-step-[a-z0-9-]+\.md", file.name)
    assert page == capsys.readouterr().out.removesuffix("\n")
    rows = table_rows(page)
    assert list(rows) == list(contenders.ON_CPU)
    if not importlib.util.find_spec("litgpt"):
        for name in ("litgpt", "litgpt-compiled"):
            assert rows.pop(name)[2].startswith("did not run: ModuleNotFoundError: ")
    for model, _, rate, ratio, share, memory, first_step, losses in rows.values():
        middle, low, high = numbers(rate)
        assert 0 < low <= middle <= high
        assert all(number > 0 for number in numbers(ratio)), ratio
        assert min(numbers(memory) + numbers(first_step)) >= 0
        assert share.endswith("%")
        first, last = (float(loss) for loss in losses.split(", "))
        assert abs(first - 6.21) < 0.2, f"{model} does not start from ln 500"
        assert last < first
    assert [rows[name][0] for name in rows][:5] == ["Llama", *["GPT-2"] * 2, *["Llama, the same"] * 2]


def test_the_page_says_what_was_measured_and_names_no_path_of_this_machine(tmp_path: Path) -> None:
    assert step.main([*TOY, "--peers", "llmkit", "--out", str(tmp_path)]) == 0

    page = next(tmp_path.iterdir()).read_text()
    command = "step.py --shapes toy --peers llmkit --steps 2 --warmup 1 --rounds 2 --precision fp32`"
    for fact in (
        command,
        f"torch {torch.__version__}",
        "6 N + 12 L d s",
        "fp32 throughout",
        "commit",
        "threads",
    ):
        assert fact in page
    assert "nothing is compiled" in page
    assert not re.search(r"(^|[\s`(])/\w", page), "an absolute path"


def test_a_contender_that_cannot_run_is_reported_with_the_reason_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    assert step.main([*TOY, "--peers", "llmkit,gpt2", "--out", str(tmp_path)]) == 0

    rows = table_rows(next(tmp_path.iterdir()).read_text())
    assert rows["gpt2"][2].startswith("did not run: ModuleNotFoundError: ")
    assert not numbers("".join(rows["gpt2"][3:]))
    assert numbers(rows["llmkit"][2])[0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "toy,huge"], "'huge' is not among demo, toy, 14m"),
        (["--peers", "gpt3"], "'gpt3' is not among llmkit, gpt2"),
        (["--steps", "0"], "'0' is not a whole number from 1 on"),
        (["--rounds", "many"], "'many' is not a whole number from 1 on"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        step.main(arguments)

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_script_runs_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), "--shapes", "nonsense"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG)

    assert done.returncode == 2
    assert "'nonsense' is not among demo, toy, 14m" in done.stderr


@pytest.mark.exhaustive
def test_a_contender_alone_has_a_process_of_its_own(tmp_path: Path) -> None:
    alone = run_alone("toy", "llmkit", "fp32", tmp_path)

    assert alone.failed is None
    assert alone.peak_gib > 0.05
    assert alone.first_step_seconds > 0


def test_contenders_that_do_not_fit_side_by_side_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "free_memory_gib", lambda device: 0.0)

    assert step.main([*TOY, "--peers", "llmkit,gpt2", "--out", str(tmp_path)]) == 0

    page = next(tmp_path.iterdir()).read_text()
    assert "one contender after the other" in page
    assert all(numbers(row[2])[0] > 0 for row in table_rows(page).values())
