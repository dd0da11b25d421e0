"""Which runs a comparison of recipes still lacks, and what stored ones say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.learning_sizes import TOY
from benchmarks.learning_store import FACTORS, Findings, Job, Kind, Line, Store, digest, tuning_steps
from llmkit.errors import UserError

RECIPE = {"optimizer": {"learning_rate": 0.008}, "text": {"rows": 4}}
RECIPES = {"llmkit": digest(RECIPE), "nanogpt": "of nanogpt"}


def line(contender: str, kind: Kind, bits: float | None, factor: float = 1.0, **changes: object) -> Line:
    steps = tuning_steps(TOY) if kind == "tune" else TOY.steps
    job = Job("toy", contender, kind, 0, factor, steps)
    made = Line(job, RECIPES[contender], bits, step_seconds=0.5, parameters=7)
    return replace(made, **changes)


def sweep(contender: str, bits: dict[float, float | None]) -> list[Line]:
    return [line(contender, "tune", value, factor) for factor, value in bits.items()]


def findings(*lines: Line) -> Findings:
    return Findings(TOY, RECIPES, lines)


def wanted(found: Findings, contender: str, kind: Kind) -> list[Job]:
    return found.jobs([contender], [0, 1], [kind])


def test_the_sweep_goes_on_outwards_while_the_best_factor_is_at_its_end() -> None:
    bits: dict[float, float | None] = {factor: 2.0 + factor for factor in FACTORS}

    assert [job.factor for job in wanted(findings(), "nanogpt", "tune")] == list(FACTORS)
    below = findings(*sweep("nanogpt", bits))
    assert below.factor("nanogpt") is None
    assert [job.factor for job in wanted(below, "nanogpt", "tune")] == [FACTORS[0] / 2]
    above = findings(*sweep("nanogpt", {factor: -value for factor, value in bits.items() if value}))
    assert [job.factor for job in wanted(above, "nanogpt", "tune")] == [FACTORS[-1] * 2]
    between = findings(*sweep("nanogpt", bits | {1.0: 1.0}))
    assert wanted(between, "nanogpt", "tune") == []
    assert between.factor("nanogpt") == 1.0


def test_a_run_that_diverged_is_worse_than_any_and_the_sweep_ends_somewhere() -> None:
    bits: dict[float, float | None] = dict.fromkeys(FACTORS)
    assert findings(*sweep("nanogpt", bits | {2.0: 9.0})).factor("nanogpt") == 2.0

    for _ in range(40):
        jobs = wanted(findings(*sweep("nanogpt", bits)), "nanogpt", "tune")
        bits |= {job.factor: None for job in jobs}
    assert jobs == []
    assert all(math.isinf(value) for value in findings(*sweep("nanogpt", bits)).sweep("nanogpt").values())


def test_runs_at_equal_seconds_have_as_many_steps_as_llmkit_had_the_time_for() -> None:
    bits = {factor: abs(factor - 2.0) for factor in FACTORS}
    lines = [*sweep("llmkit", bits), *sweep("nanogpt", bits)]
    assert wanted(findings(*lines), "nanogpt", "seconds") == [], "what a step costs is not known"

    lines.append(line("nanogpt", "pace", None, reference=(1.0, RECIPES["llmkit"])))
    found = findings(*lines)
    assert found.pace("nanogpt") == 0.5
    assert [(job.seed, job.steps, job.factor) for job in wanted(found, "nanogpt", "seconds")] == [
        (0, 2 * TOY.steps, 2.0), (1, 2 * TOY.steps, 2.0),
    ]  # fmt: skip
    assert wanted(found, "llmkit", "seconds") == [], "its run at equal tokens is that"
    run = line("llmkit", "tokens", 1.5, 2.0)
    assert findings(*lines, run).counted("llmkit", "seconds") == [run]


def test_results_of_other_settings_factors_and_paces_do_not_count() -> None:
    lines = sweep("nanogpt", {factor: abs(factor - 2.0) for factor in FACTORS})
    good = line("nanogpt", "tokens", 1.5, 2.0)
    other = [replace(good, recipe="another"), line("nanogpt", "tokens", 1.4, 4.0)]

    assert findings(*lines, *other, good).counted("nanogpt", "tokens") == [good]
    assert findings(line("nanogpt", "pace", None, reference=(1.0, "of old"))).pace("nanogpt") is None


def test_lines_are_read_as_they_were_written_and_one_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    store, made = Store(tmp_path), line("llmkit", "tokens", 1.5, facts={"date": "today"})
    store.add(made)
    store.add(replace(made, bits_per_byte=None, reference=(1.0, "x")))
    with store.path.open("r+b") as file:
        file.truncate(store.path.stat().st_size - 9)

    assert store.lines() == [made]
    store.add(replace(made, parameters=8))
    assert [each.parameters for each in store.lines()] == [7, 8]


@pytest.mark.parametrize("text", ["{", "[]", '{"job": {}}', "7"])
def test_a_line_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    store.add(line("llmkit", "tokens", 1.5))
    with store.path.open("a") as file:
        file.write(text + "\n")

    with pytest.raises(UserError, match=r"runs\.jsonl:2: not a line of this benchmark"):
        store.lines()


def test_changed_settings_are_refused_until_the_old_runs_are_left_out(tmp_path: Path) -> None:
    store, changed = Store(tmp_path), {**RECIPE, "optimizer": {"learning_rate": 0.004}}
    store.check("toy", "llmkit", RECIPE)
    store.add(line("llmkit", "tokens", 1.5))
    store.add(line("nanogpt", "tokens", 1.5))
    store.check("toy", "llmkit", RECIPE)

    with pytest.raises(
        UserError, match=r"toy/llmkit.*learning_rate: 0.008, now 0.004.*--begin-anew toy/llmkit"
    ):
        store.check("toy", "llmkit", changed)

    store.begin_anew("toy", "llmkit")
    store.check("toy", "llmkit", changed)
    assert [each.job.contender for each in store.lines()] == ["nanogpt"]
    assert len(store.path.read_text().splitlines()) == 3, "nothing is deleted"


def test_a_run_has_one_maker(tmp_path: Path) -> None:
    with Store(tmp_path).claimed("run") as first, Store(tmp_path).claimed("run") as second:
        assert (first, second) == (True, False)
    with Store(tmp_path).claimed("run") as again:
        assert again


def test_lines_are_json_of_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(line("llmkit", "tokens", 1.5))

    (entry,) = map(json.loads, store.path.read_text().splitlines())
    assert entry["job"]["kind"] == "tokens"
