"""The choice of forms: by rule, by name, and refused with place and reason where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llmkit import registry
from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts
from llmkit.plan import operators as table
from llmkit.plan.operators import FORMS, Choice, Form, Situation, choose_operators, show_choices
from llmkit.precision import PRECISIONS

CPU, GPU = DeviceFacts(), DeviceFacts("cuda", has_bf16_units=True, capability=(9, 0), triton=True)


def choose(
    device: DeviceFacts | None = CPU, compiled: bool = False, precision: str = "fp32", **kernels: Any
) -> tuple[dict[str, Choice], list[str]]:
    """The choices, and the text of what is wrong."""
    config = Config.model_validate(
        {"data": {"sources": [{"type": "stdlib"}]}, "train": {"max_steps": 1}, "kernels": kernels}
    )
    situation = Situation(config, None, Layout(), PRECISIONS[precision], device, compiled)
    chosen, mistakes = choose_operators(Loaded.of(config), situation)
    return chosen, [mistake.what for mistake in mistakes]


@pytest.fixture(autouse=True)
def _two_forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Norms with a Triton form that takes no odd rows; nothing of other code stays registered."""
    odd = table.triton_form(lambda s: "rows are odd" if s.config.data.sequence_length % 2 else None)
    monkeypatch.setattr(table, "FORMS", {**FORMS, "norm": (odd, Form("torch"))})
    before = dict(registry._components)
    yield
    registry._components.clear()
    registry._components.update(before)


@pytest.mark.parametrize(
    ("device", "compiled", "backend", "form"),
    [
        (CPU, False, "auto", "torch"),
        (None, False, "auto", "torch"),
        (GPU, False, "auto", "triton"),
        (GPU, True, "auto", "torch"),
        (GPU, True, "triton", "triton"),
        (GPU, False, "torch", "torch"),
        (replace(GPU, triton=False), False, "auto", "torch"),
        (replace(CPU, triton=True), False, "auto", "torch"),
    ],
)
def test_triton_serves_gpus_where_nothing_is_compiled(
    device: DeviceFacts | None, compiled: bool, backend: str, form: str
) -> None:
    chosen, mistakes = choose(device, compiled, backend=backend)
    assert (chosen["norm"].form, mistakes) == (form, [])
    assert set(chosen) == set(FORMS)


def test_the_avx512_linear_layer_is_for_compiled_bf16_on_such_a_cpu() -> None:
    able = replace(CPU, has_bf16_units=True, avx512_bf16=True)
    assert choose(able, True, "bf16")[0]["linear"].form == "avx512"
    for device, compiled, precision in ((able, False, "bf16"), (able, True, "fp32"), (CPU, True, "bf16")):
        assert choose(device, compiled, precision)[0]["linear"].form == "torch"
    forced = {"linear": "avx512"}
    assert choose(able, False, "bf16", operators=forced)[0]["linear"].form == "avx512"
    for device, precision, why in (
        (able, "fp32", "is for bf16"),
        (CPU, "bf16", "needs a CPU with AVX-512 BF16"),
        (replace(able, compiler_missing="no C++ compiler is found"), "bf16", "no C++ compiler"),
    ):
        (only,) = choose(device, precision=precision, operators=forced)[1]
        assert why in only


def test_what_is_asked_for_and_cannot_be_is_named_all_at_once() -> None:
    _, mistakes = choose(operators={"norm": "triton", "attention": "flash9"})
    first, second = mistakes
    assert first.startswith('kernels.operators.norm "triton" (settings): Triton kernels run on a GPU')
    assert "attention has no form of this name; it has blocks, matmul, sdpa, and" in second
    _, (only,) = choose(backend="triton")
    assert only.startswith('kernels.backend "triton" (settings): Triton kernels run on a GPU')


def test_a_registered_form_is_one_of_its_operator_alone_and_may_refuse() -> None:
    @registry.register("operator", "mine")
    class Mine:
        operator = "norm"

        @staticmethod
        def refuses(situation: Situation) -> str | None:
            return "it is compiled" if situation.compiled else None

        @staticmethod
        def rms_norm(*arguments: Any) -> Any: ...

    chosen, mistakes = choose(operators={"norm": "mine"})
    assert (chosen["norm"].form, mistakes) == ("mine", [])
    assert choose(compiled=True, operators={"norm": "mine"})[1] == [
        'kernels.operators.norm "mine" (settings): it is compiled'
    ]
    assert ".Mine is a form of 'norm'" in choose(operators={"attention": "mine"})[1][0]
    Mine.operator = "rotation"
    (refusal,) = choose(operators={"rotation": "mine"})[1]
    assert ".Mine has none of the functions of rotation: rotate" in refusal


def test_choices_are_shown_with_the_usual_one_last() -> None:
    answers = {"norm": ("triton", "a"), "attention": ("sdpa", "b"), "linear": ("torch", "c")}
    chosen = {name: Choice(name, *answer) for name, answer in {**answers, "adamw": ("torch", "c")}.items()}
    assert show_choices(chosen) == [
        ("norm", "triton", "a"), ("attention", "sdpa", "b"), ("other operators", "torch", "c")
    ]  # fmt: skip
    assert show_choices({"norm": Choice("norm", "torch", "x")}) == [("all operators", "torch", "x")]
