"""The comparison of recipes at a toy size: all of it runs, stops, goes on, and refuses what it cannot use."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import llmkit
from benchmarks import learning, learning_run, learning_store
from benchmarks.learning_contenders import Task
from benchmarks.learning_sizes import SIZES, TOY, Text
from llmkit.config.load import Loaded

CONTENDERS = ["llmkit", "nanogpt", "llama", "nanochat"]
PLAIN = ["--precision", "fp32", "--no-compile"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text(TOY, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of two factors that does not go on, and few turns."""
    monkeypatch.setattr(learning_store, "FACTORS", (1.0, 2.0))
    monkeypatch.setattr(learning_store, "LIMITS", (1.0, 2.0))
    monkeypatch.setattr(learning_run, "TURNS", 1)


def toy(folder: Path, *further: str) -> list[str]:
    return ["--sizes", "toy", "--contenders", ",".join(CONTENDERS), "--seeds", "0,1", *PLAIN, *further,
            "--folder", str(folder)]  # fmt: skip


def table_rows(page: str) -> list[list[str]]:
    """The cells of all rows that begin with a contender."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    return [row for row in rows if row[0] in CONTENDERS]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("short")
def test_a_toy_run_fills_the_page_and_is_not_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learning.main(toy(tmp_path)) == 0

    page = (tmp_path / "learning.md").read_text()
    assert page == capsys.readouterr().out.removesuffix("\n")
    assert str(tmp_path) not in page
    rows = table_rows(page)
    assert [row[0] for row in rows] == 3 * CONTENDERS, "equal tokens, equal seconds, the sweep"
    for _, parameters, factor, seconds, pace, steps, bits, seeds, minus in rows[:8]:
        assert 0.1 < float(parameters.removesuffix("M")) < 0.2
        assert factor in ("1", "2")
        assert float(seconds) > 0 and float(pace) > 0 and int(steps.replace(",", "")) > 0
        assert 0 < float(bits.split(" ± ")[0]) < 20
        assert seeds == "0, 1"
        assert minus == "-" or re.fullmatch(r"[+-]\d+\.\d{4}( \*)?", minus)
    assert rows[0] == rows[4], "llmkit's seconds are everybody's"

    monkeypatch.setattr(learning, "train", None)
    monkeypatch.setattr(learning, "measure_steps", None)
    assert learning.main(toy(tmp_path)) == 0
    assert learning.main(toy(tmp_path, "--page", "--output", str(tmp_path / "new" / "page.md"))) == 0
    assert table_rows((tmp_path / "new" / "page.md").read_text()) == rows


@pytest.mark.exhaustive
@pytest.mark.usefixtures("short")
def test_a_comparison_that_was_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names, whole = ["--contenders", "llmkit,nanogpt", "--only", "tune,tokens"], learning.train
    made: list[str] = []

    def stopped(name: str, task: Task) -> learning_run.Result:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(name)
        return whole(name, task)

    monkeypatch.setattr(learning, "train", stopped)
    assert learning.main(toy(tmp_path, *names)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3

    monkeypatch.setattr(learning, "train", lambda name, task: made.append(name) or whole(name, task))
    assert learning.main(toy(tmp_path, *names)) == 0
    assert made.count("llmkit") == made.count("nanogpt") == 4, "two factors and two seeds"


@pytest.mark.exhaustive
@pytest.mark.usefixtures("short")
def test_a_contender_that_cannot_run_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    for kinds in ("pace", "tune"):
        few = ["--contenders", "llama,nanogpt", "--only", kinds]
        assert learning.main(toy(tmp_path / kinds, *few)) == 0
        page = (tmp_path / kinds / "learning.md").read_text()
        assert "- toy/llama did not run: ModuleNotFoundError" in page
        assert {row[0] for row in table_rows(page)} == {"nanogpt"}


def test_nothing_begins_that_does_not_fit_into_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learning, "train", None)

    assert learning.main(toy(tmp_path, "--only", "tune", "--budget-minutes", "1e-9")) == 0

    assert "does not fit into the rest of --budget-minutes" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_results_of_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--contenders", "nanogpt", "--only", "tune", "--page"]
    monkeypatch.setattr(learning_run, "evaluate", lambda contender, text: 1.0)
    assert learning.main(toy(tmp_path, *few[:-1])) == 0
    capsys.readouterr()

    assert learning.main([*toy(tmp_path, *few), "--threads", "2"]) == 2
    message = capsys.readouterr().err
    assert "runs of toy/nanogpt were made with other settings (machine.threads: 1, now 2)" in message
    assert learning.main([*toy(tmp_path, *few), "--threads", "2", "--begin-anew", "toy/nanogpt"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "huge"], "'huge' is not among demo, 5m, 14m, toy"),
        (["--contenders", "gpt3"], "'gpt3' is not among llmkit, nanogpt"),
        (["--only", "all"], "'all' is not among pace, tune, tokens, seconds"),
        (["--seeds", "0,x"], "'0,x' is not a list of whole numbers"),
        (["--budget-minutes", "0"], "--budget-minutes must be above 0"),
        (["--threads", "0"], "--threads and"),
        (["--begin-anew", "demo"], "'demo' is not a size and a contender, such as demo/llmkit"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        learning.main(arguments)

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SIZES)
def test_the_settings_of_every_size_are_valid(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    config = size.config(3, size.steps, tmp_path)

    assert config.train.max_steps == size.steps
    assert (config.data.sequence_length, config.train.global_batch_size) == (size.length, size.rows)
    assert (config.data.tokenizer.vocab_size, config.run.seed) == (size.vocabulary, 3)
    assert 2.5e6 < size.tokens < 5e6


def test_all_contenders_read_the_same_rows_which_a_seed_orders(text: Text) -> None:
    first, again, other = text.training(0, 6), text.training(0, 4), text.training(1, 6)

    assert [rows.tokens.tolist() for rows in first[:4]] == [rows.tokens.tolist() for rows in again]
    assert [rows.tokens.tolist() for rows in first] != [rows.tokens.tolist() for rows in other]
    assert first[0].tokens.shape == (TOY.rows, TOY.length + 1)


@pytest.mark.exhaustive
def test_llmkit_is_trained_and_evaluated_as_llmkit_train_does(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text.config(1, 5)
    update = {
        "run": config.run.model_copy(update={"dir": str(tmp_path)}),
        "train": config.train.model_copy(update={"precision": "fp32"}),
        "kernels": config.kernels.model_copy(update={"compile": False}),
        "monitor": config.monitor.model_copy(update={"sample": None}),
    }
    monkeypatch.chdir(tmp_path)

    run = llmkit.train(Loaded.of(config.model_copy(update=update)))
    result = learning_run.train("llmkit", Task(text, 1, 5, 1.0, "fp32", compiled=False))

    rows = [json.loads(row) for row in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert result.bits_per_byte == pytest.approx(rows[-1]["eval_bits_per_byte"], rel=1e-6)
    assert result.step_seconds > 0


def test_every_contender_learns(text: Text) -> None:
    """From its start, which knows nothing: a byte of 257 costs 8 bits."""
    for name in CONTENDERS:
        factor = 40.0 if name == "llama" else 4.0
        result = learning_run.train(name, Task(text, 0, 12, factor, "fp32", compiled=False))
        assert result.bits_per_byte is not None and result.bits_per_byte < 7.5, name
