"""The table of functions: complete, agreed with the plan's, and replaceable piece by piece."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from llmkit import registry
from llmkit.config.operators import FUNCTIONS, GENERATED
from llmkit.errors import UserError
from llmkit.kernels import norm
from llmkit.kernels.attention import sdpa
from llmkit.kernels.attention_blocks import matmul
from llmkit.kernels.operators import FORMS, LIKE, PLAIN, TORCH, Operators, _checked
from llmkit.plan import operators as planned
from llmkit.registry import BUILT_IN, Component


def test_plan_and_table_know_the_same_forms() -> None:
    assert {operator: {form.name for form in forms} for operator, forms in planned.FORMS.items()} == {
        operator: set(forms) for operator, forms in FORMS.items()
    }
    assert {operator: forms[-1].name for operator, forms in planned.FORMS.items()} == dict(PLAIN)
    names = {name for forms in FORMS.values() for name in forms}
    assert names > GENERATED
    assert names | {"auto"} == set(BUILT_IN["operator"]), "or another's code could take the name"


def test_the_documented_table_is_this_one() -> None:
    text = (Path(__file__).parents[2] / "docs/kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`[\w`, ]+`) \| ([\w, ]+) \|$", text, re.MULTILINE)
    assert [(operator, names.replace("`", ""), forms) for operator, names, forms in rows] == [
        (operator, ", ".join(FUNCTIONS[operator]), ", ".join(form.name for form in forms))
        for operator, forms in planned.FORMS.items()
    ]


def test_every_function_of_every_operator_is_there() -> None:
    names = [name for functions in FUNCTIONS.values() for name in functions]
    assert sorted([*names, "forms"]) == sorted(field.name for field in dataclasses.fields(Operators))
    assert all(callable(getattr(TORCH, name)) for name in names)


def test_a_form_replaces_the_functions_of_its_operator_alone() -> None:
    other = Operators.of({"attention": "matmul"})
    assert other.attention is matmul and TORCH.attention is sdpa
    assert other.rms_norm is norm.rms_norm
    assert other.forms == {**PLAIN, "attention": "matmul"}


def test_what_is_not_generated_stays_where_a_generated_kernel_has_failed() -> None:
    chosen = Operators.of({"attention": "matmul", "linear": "fp8"})
    failed = dataclasses.replace(chosen, forms={**chosen.forms, "norm": "triton"})
    assert failed.without_generated() == chosen
    failed = dataclasses.replace(chosen, forms={**chosen.forms, "head_loss": "triton"})
    assert failed.without_generated().forms["head_loss"] == "chunked", "all logits would take more memory"


def test_results_of_another_form_must_have_the_shapes_and_types_of_the_contract(monkeypatch) -> None:
    class Mine:
        operator = "norm"

        @staticmethod
        def rms_norm(x, weight, eps):
            return norm.rms_norm(x, weight, eps).float()

        @staticmethod
        def add_rms_norm(x, branch, weight, eps):
            return (x + branch)[:, :1], norm.rms_norm(x, weight, eps)

        @staticmethod
        def layer_norm(x, weight, bias, eps):
            return None

        @staticmethod
        def add_layer_norm(x, branch, weight, bias, eps):
            return norm.layer_norm(x + branch, weight, bias, eps)

    monkeypatch.setitem(registry._components, ("operator", "mine"), Component("operator", "mine", Mine, None))
    mine, other = Operators.of({"norm": "mine"}), {"dtype": torch.bfloat16}
    x, weight, origin = torch.randn(2, 3, 8), torch.randn(8), re.escape(f"{Mine.__module__}.")
    assert torch.equal(mine.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    rounded = torch.ones(2, 8, **other), torch.ones(8, **other), 1e-5
    with pytest.raises(UserError, match=rf"^{origin}.*rms_norm must return \(2, 8\) torch.bfloat16; it ret"):
        mine.rms_norm(*rounded)
    with pytest.raises(UserError, match=r"returned \(2, 1, 8\) torch.float32 and \(2, 3, 8\) torch.float32"):
        mine.add_rms_norm(x, x, weight, 1e-5)
    with pytest.raises(UserError, match="it returned NoneType"):
        mine.layer_norm(x, weight, weight, 1e-5)
    with pytest.raises(UserError, match="it returned no tuple but Tensor"):
        mine.add_layer_norm(x, x, weight, weight, 1e-5)


def test_checking_results_breaks_no_graph() -> None:
    checked = _checked("add_rms_norm", "mine", TORCH.add_rms_norm)
    compiled = torch.compile(checked, fullgraph=True, backend="eager", dynamic=True)
    x, weight = torch.randn(2, 3, 8), torch.randn(8)
    assert torch.equal(compiled(x, x, weight, 1e-5)[1], TORCH.add_rms_norm(x, x, weight, 1e-5)[1])


def test_functions_with_checked_results_return_what_resembles_their_arguments() -> None:
    q, k, weight = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(8)
    made = {
        "rms_norm": (q, weight, 1e-5), "layer_norm": (q, weight, weight, 1e-5), "swiglu": (q, q),
        "add_rms_norm": (q, q, weight, 1e-5), "add_layer_norm": (q, q, weight, weight, 1e-5), "gelu": (q,),
        "relu2": (q,), "geglu": (q, q),
        "dropout": (q, 0.5), "dropout_add": (q, q, 0.5), "attention": (q, k, k),
        "rotate": (q, k, torch.ones(5, 4), torch.ones(5, 4)),
    }  # fmt: skip
    assert set(made) == set(LIKE)
    for name, arguments in made.items():
        _checked(name, "plain", getattr(TORCH, name))(*arguments)


def test_norms_after_a_sum_are_the_norms_of_the_sum() -> None:
    x, branch = torch.randn(2, 3, 7, 20).unbind()
    weight, bias = torch.randn(2, 20).unbind()
    total, normed = TORCH.add_rms_norm(x, branch, weight, 1e-5)
    assert torch.equal(total, x + branch) and torch.equal(normed, TORCH.rms_norm(total, weight, 1e-5))
    total, normed = TORCH.add_layer_norm(x, branch, weight, bias, 1e-5)
    assert torch.equal(total, x + branch)
    assert torch.equal(normed, TORCH.layer_norm(total, weight, bias, 1e-5))
