"""Which checkpoints are kept, and which one is the best."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.checkpoint.format import Damaged
from llmkit.checkpoint.keeping import BEST, Best, Keep, read_best, step_of, superfluous, write_best

OLDER = [Path(f"step-{step:08d}") for step in (10, 20, 30, 40)]


def test_the_step_of_a_folder() -> None:
    assert step_of(Path("a/step-00000012")) == 12
    assert step_of(Path(".replaced-step-00000012")) == 12
    assert step_of(Path("average")) is None


@pytest.mark.parametrize(
    ("keep", "best", "gone"),
    [
        (Keep(1), None, [10, 20, 30, 40]),
        (Keep(3), None, [10, 20]),
        (Keep(9), None, []),
        (Keep(1, every=20), None, [10, 30]),
        (Keep(2, every=20), 10, [30]),
        (Keep(1), 40, [10, 20, 30]),
        (Keep(1), 50, [10, 20, 30, 40]),  # the newest one itself, or one that is not there
    ],
)
def test_what_goes(tmp_path: Path, keep: Keep, best: int | None, gone: list[int]) -> None:
    if best is not None:
        write_best(tmp_path, Best(best, 1.5))
    assert [step_of(folder) for folder in superfluous(tmp_path, OLDER, keep)] == gone


def test_the_best_is_what_was_written_last(tmp_path: Path) -> None:
    assert read_best(tmp_path) is None
    for best in (Best(10, 2.5), Best(20, 0.1 + 0.2), None, None):
        write_best(tmp_path, best)
        assert read_best(tmp_path) == best
    assert list(tmp_path.iterdir()) == []


def test_one_that_has_lost_the_run_changes_nothing(tmp_path: Path) -> None:
    def lost() -> None:
        raise ZeroDivisionError

    write_best(tmp_path, Best(10, 2.5))
    for best in (Best(20, 1.0), None):
        with pytest.raises(ZeroDivisionError):
            write_best(tmp_path, best, lost)
    assert read_best(tmp_path) == Best(10, 2.5)


def test_a_loss_may_be_written_as_a_whole_number(tmp_path: Path) -> None:
    """As JSON writers of other programs do with 2.0."""
    (tmp_path / BEST).write_text('{"step": 10, "eval_loss": 2}')
    found = read_best(tmp_path)
    assert found == Best(10, 2.0) and type(found.eval_loss) is float


@pytest.mark.parametrize(
    "content",
    [
        '{"step": 10, "eval_loss": true}', '{"step": 10, "eval_loss": 1%s}' % ("0" * 400),
        "", "[1]", "{}", '{"step": 10}', '{"step": "10", "eval_loss": 1.0}', '{"step": -1, "eval_loss": 1.0}',
        '{"step": true, "eval_loss": 1.0}', '{"step": 10, "eval_loss": NaN}', '{"step": 10, "eval_loss": ',
        "[" * 4096, '{"step": 10, "eval_loss": 1.0, "more": "' + "x" * 5000 + '"}',
    ],
)  # fmt: skip
def test_where_it_is_not_known_nothing_may_go(tmp_path: Path, content: str) -> None:
    (tmp_path / BEST).write_text(content)
    with pytest.raises(Damaged, match=r"best.json: it does not say which checkpoint is the best"):
        superfluous(tmp_path, OLDER, Keep(1))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / BEST).mkdir()
    with pytest.raises(Damaged):
        read_best(tmp_path)
