"""Times of forms are measured once, kept, and made anew where the file that has them is not sound."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.kernels import attention_timing
from llmkit.kernels.attention_timing import Sizes, measured, milliseconds
from llmkit.kernels.operators import Operators

CPU = torch.device("cpu")
FORMS = ("sdpa", "blocks")
SIZES = Sizes(2, 72, heads=4, kv_heads=2, head_dim=8, dropout=0.0, dtype="torch.float32")
TIMES = {"sdpa": 2.5, "blocks": 1.5}


@pytest.fixture
def calls(monkeypatch):
    """Where measuring is made to find `TIMES`: how often it did."""
    counted = []

    def measure(*arguments: Any) -> dict[str, float]:
        counted.append(arguments)
        return dict(TIMES)

    monkeypatch.setattr(attention_timing, "measured", measure)
    return counted


def ask(folder: Path, told: list[str], sizes: Sizes = SIZES, name: str = "a device") -> dict[str, float]:
    return milliseconds(FORMS, sizes, CPU, name, folder, told.append)


def test_forward_and_backward_pass_of_each_form_are_measured(monkeypatch):
    made, passes = [], {"sdpa": 0, "blocks": 0}
    table = Operators.of

    def of(chosen):
        def counting(q, k, v, **how):
            passes[chosen["attention"]] += 1
            made.append((q.shape, k.shape, v.shape, q.dtype, how))
            return table(chosen).attention(q, k, v, **how)

        return replace(table(chosen), attention=counting)

    monkeypatch.setattr(attention_timing.Operators, "of", of)
    state = torch.get_rng_state()
    times = measured(FORMS, SIZES, CPU, pytest.fail)
    assert list(times) == ["sdpa", "blocks"]
    assert all(value > 0.0 for value in times.values())
    assert passes == dict.fromkeys(FORMS, 1 + attention_timing.ROUNDS * attention_timing.CALLS)
    query, shared = (2, 72, 4, 8), (2, 72, 2, 8)
    assert set(map(str, made)) == {
        str((torch.Size(query), torch.Size(shared), torch.Size(shared), torch.float32, {"dropout": 0.0}))
    }
    assert torch.equal(torch.get_rng_state(), state), "the run's random numbers are what they would be"


def test_the_median_of_rounds_in_turns(monkeypatch):
    """A second form that is slow in one round is no slower for that."""
    clock, order = [0.0], []

    def run(form: str, inputs: list[Any], sizes: Sizes, calls: int) -> None:
        order.append(form)
        slow = form == "blocks" and order.count("blocks") == 4
        clock[0] += calls * (9.0 if slow else {"sdpa": 0.002, "blocks": 0.001}[form])

    monkeypatch.setattr(attention_timing, "_run", run)
    monkeypatch.setattr(attention_timing, "_now", lambda device: clock[0])
    assert measured(FORMS, SIZES, CPU, pytest.fail) == pytest.approx({"sdpa": 2.0, "blocks": 1.0})
    assert order == ["sdpa", "blocks"] * (1 + attention_timing.ROUNDS)


def test_a_form_that_fails_is_left_out(monkeypatch):
    table = Operators.of

    def of(chosen):
        if chosen["attention"] == "blocks":
            raise torch.OutOfMemoryError("too much")
        return table(chosen)

    monkeypatch.setattr(attention_timing.Operators, "of", of)
    assert measured(FORMS, SIZES, CPU, pytest.fail)["blocks"] == float("inf")
    monkeypatch.setattr(attention_timing.Operators, "of", lambda chosen: fail(RuntimeError("it cannot")))
    assert measured(FORMS, SIZES, CPU, pytest.fail) == {}


def fail(error: Exception) -> Any:
    raise error


def test_another_package_must_compute_what_pytorch_does(monkeypatch):
    """It may fail in any way, and is then left out; ours may not."""
    right = [torch.ones(4), torch.arange(4.0), torch.ones(2), torch.ones(2)]
    for wrong, share in ((0.01, None), (0.1, "10.0%"), (float("nan"), "nan%")):
        results = {"flash": right, "flash4": [right[0], right[1] * (1 + wrong), *right[2:]]}
        monkeypatch.setattr(attention_timing, "_run", lambda form, *_, results=results: results[form])
        refusal = attention_timing._refusal("flash4", right, SIZES, CPU)
        away = f"the gradient of q is {share} away from what PyTorch's flash attention gives"
        assert refusal == (share and away)
    monkeypatch.setattr(attention_timing, "_run", lambda *_: fail(TypeError("no argument `out`")))
    refusal = attention_timing._refusal("flash4", right, SIZES, CPU)
    assert refusal == "it failed with TypeError: no argument `out`"
    with pytest.raises(TypeError):
        attention_timing._refusal("flash", right, SIZES, CPU)


def test_a_package_that_is_left_out_has_a_line_with_the_reason(monkeypatch):
    monkeypatch.setattr(attention_timing, "_versions", lambda package: [f"{package} 4.1"])
    run, told = attention_timing._run, list[str]()

    def fails(form: str, *rest: Any) -> Any:
        return fail(TypeError("no argument `out`")) if form == "flash4" else run(form, *rest)

    monkeypatch.setattr(attention_timing, "_run", fails)
    assert list(measured(("sdpa", "flash4"), SIZES, CPU, told.append)) == ["sdpa"]
    (line,) = told
    assert line == (
        "attention is not measured with flash4 (flash_attn 4.1): it failed with TypeError: no argument `out`"
    )


def test_times_without_all_forms_for_want_of_memory_are_not_kept(tmp_path, monkeypatch):
    inf = float("inf")
    found: list[Any] = [{"sdpa": 2.5, "blocks": inf}, torch.OutOfMemoryError("too much"), {"sdpa": 3.0}]

    def measure(*arguments: Any) -> dict[str, float]:
        one = found.pop(0)
        return fail(one) if isinstance(one, Exception) else one

    monkeypatch.setattr(attention_timing, "measured", measure)
    answers = [ask(tmp_path, []) for _ in range(4)]
    assert answers == [{"sdpa": 2.5}, {}, {"sdpa": 3.0}, {"sdpa": 3.0}]


def test_times_are_kept_by_the_version_of_a_package(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(attention_timing, "measured", lambda *_: asked.append(1) or {"flash4": 1.0})
    metadata = attention_timing.metadata
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"flash_attn": ["flash-attn-4"] * 2})
    for version in ("4.0", "4.0", "4.1"):
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        milliseconds(("flash", "flash4"), SIZES, CPU, "a device", tmp_path, pytest.fail)
    assert len(asked) == 2


def test_what_was_measured_is_kept_by_device_and_sizes(tmp_path, calls):
    folder, told = tmp_path / "new" / "cache", []
    assert ask(folder, told) == ask(folder, told) == TIMES
    assert len(calls) == 1
    assert ask(folder, told, replace(SIZES, rows=3)) == ask(folder, told, name="another") == TIMES
    assert len(calls) == 3
    assert len(list(folder.iterdir())) == 3
    assert told == []


BROKEN = {
    "empty": b"",
    "cut": b'{"key": {"dev',
    "a list": b"[1, 2]",
    "nested": b"[" * 20_000,
    "of another key": json.dumps({"key": {"device": "x"}, "milliseconds": TIMES}).encode(),
    "large": b'{"milliseconds": {}, "key": "' + b"x" * attention_timing.LARGEST_FILE + b'"}',
}
WRONG_TIMES = (
    None,
    [1.0],
    {"varlen": 1.0},
    {"sdpa": "fast"},
    {"sdpa": -1.0},
    {"sdpa": float("nan")},
    {"sdpa": True},
)


def test_a_file_that_is_not_sound_is_made_anew_with_one_line(tmp_path, calls):
    ask(tmp_path, [])
    (path,) = tmp_path.iterdir()
    good = json.loads(path.read_bytes())
    wrong = [json.dumps(good | {"milliseconds": times}).encode() for times in WRONG_TIMES]
    for number, content in enumerate([*BROKEN.values(), *wrong], start=2):
        path.write_bytes(content)
        told: list[str] = []
        assert ask(tmp_path, told) == TIMES
        assert len(calls) == number, content[:80]
        (line,) = told
        assert line.startswith(f"{path} is not used, and attention is measured anew: ")
        assert json.loads(path.read_bytes()) == good


def test_a_file_of_another_user_and_a_link_are_not_used(tmp_path, calls, monkeypatch):
    ask(tmp_path, [])
    (path,) = tmp_path.iterdir()
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
        if path.stat().st_uid != 0:
            ask(tmp_path, told)
            assert "it is not a file of this user" in told.pop()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    ask(tmp_path, told)
    assert "it is not a file of this user" in told.pop()
    assert not path.is_symlink()


def test_a_start_that_could_measure_nothing_leaves_it_to_the_next(tmp_path, monkeypatch):
    found = iter([{}, dict(TIMES)])
    monkeypatch.setattr(attention_timing, "measured", lambda *arguments: next(found))
    assert [ask(tmp_path, []), ask(tmp_path, []), ask(tmp_path, [])] == [{}, TIMES, TIMES]


def test_where_nothing_can_be_kept_a_line_says_so(tmp_path, calls):
    (tmp_path / "file").write_text("")
    told: list[str] = []
    assert ask(tmp_path / "file", told) == TIMES
    assert "cannot be kept for the next start" in told[-1]
