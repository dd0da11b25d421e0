"""The table of operators: every piece of arithmetic of a step, and the forms in which it can be computed.

Models and engines call the functions of an `Operators`; which form of each it holds is the plan's choice
(`llmkit.plan.operators`). A form is a module with functions of these names, or one function; it is
imported when it has been chosen. All forms of an operator compute the same.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from llmkit.config.operators import FUNCTIONS, GENERATED
from llmkit.errors import UserError
from llmkit.registry import find

FORMS: Mapping[str, Mapping[str, str]] = {
    "linear": {
        "torch": "llmkit.kernels.linear",
        "avx512": "llmkit.kernels.cpu.linear",
        "fp8": "llmkit.kernels.fp8",
        "int8": "llmkit.kernels.quantised",
        "nf4": "llmkit.kernels.quantised",
    },
    "norm": {"torch": "llmkit.kernels.norm", "triton": "llmkit.kernels.triton.norm"},
    "rotation": {"torch": "llmkit.kernels.rotation", "triton": "llmkit.kernels.triton.rotation"},
    "activation": {"torch": "llmkit.kernels.activation", "triton": "llmkit.kernels.triton.activation"},
    "dropout_add": {"torch": "llmkit.kernels.dropout", "triton": "llmkit.kernels.triton.dropout"},
    "attention": {
        "sdpa": "llmkit.kernels.attention:sdpa",
        "cudnn": "llmkit.kernels.attention_backends:cudnn",
        "flash": "llmkit.kernels.attention_backends:flash",
        "flash3": "llmkit.kernels.attention_backends:flash",
        "flash4": "llmkit.kernels.attention_backends:flash",
        "efficient": "llmkit.kernels.attention_backends:efficient",
        "varlen": "llmkit.kernels.attention_varlen:varlen",
        "avx512": "llmkit.kernels.cpu.attention",
        "blocks": "llmkit.kernels.attention_blocks:blocks",
        "matmul": "llmkit.kernels.attention_blocks:matmul",
    },
    "head_loss": {
        "full": "llmkit.kernels.head_loss",
        "chunked": "llmkit.kernels.head_loss_chunks",
        "triton": "llmkit.kernels.triton.cross_entropy",
        "avx512": "llmkit.kernels.cpu.head_loss",
    },
    "gradient_norm": {"torch": "llmkit.kernels.gradient_norm"},
    "adamw": {"torch": "llmkit.kernels.adamw", "triton": "llmkit.kernels.triton.adamw"},
    "muon": {"torch": "llmkit.kernels.muon", "avx512": "llmkit.kernels.cpu.muon"},
}
"""Operator -> form -> the module that has its functions, or "module:function" of an operator with one.

Where the module has a function `prepare`, it is called with the form's name whenever the form is chosen."""

COMPILE_PARTS = ("chunked", "triton", "avx512")
"""Forms of `head_loss` that are not compiled as a whole: they compile what they can gain from themselves."""

PLAIN: Mapping[str, str] = {operator: next(iter(forms)) for operator, forms in FORMS.items()}
"""Operator -> the form in plain PyTorch that runs everywhere."""


LIKE: Mapping[str, tuple[int, ...]] = {
    "rms_norm": (0,), "layer_norm": (0,), "add_rms_norm": (0, 0), "add_layer_norm": (0, 0), "rotate": (0, 1),
    "swiglu": (0,), "geglu": (0,), "gelu": (0,), "relu2": (0,), "dropout": (0,), "dropout_add": (0,),
    "attention": (0,),
}  # fmt: skip
"""Function -> for each of its results the argument that has its shape and type."""


@dataclass(frozen=True)
class Operators:
    """The functions of the chosen forms. Each is a plain function, which torch.compile traces through.

    Contracts: `llmkit.kernels.norm`, `.rotation`, `.activation`, `.dropout`, `.attention`, `.head_loss`,
    `.gradient_norm`, `.adamw`, `.muon`. forms: the choice that they follow from.
    """

    linear: Callable[..., Any]
    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    layer_norm: Callable[..., Any]
    add_layer_norm: Callable[..., Any]
    rotate: Callable[..., Any]
    swiglu: Callable[..., Any]
    geglu: Callable[..., Any]
    gelu: Callable[..., Any]
    relu2: Callable[..., Any]
    dropout: Callable[..., Any]
    dropout_add: Callable[..., Any]
    attention: Callable[..., Any]
    head_loss: Callable[..., Any]
    sum_of_squares: Callable[..., Any]
    adamw: Callable[..., Any]
    look_ahead: Callable[..., Any]
    orthogonalise: Callable[..., Any]
    descend: Callable[..., Any]
    forms: Mapping[str, str]

    @classmethod
    def of(cls, chosen: Mapping[str, str] | None = None) -> Operators:
        """The functions of these forms (operator -> form), plain PyTorch where nothing is chosen.

        A form of another's code may lack functions of its operator: those are plain PyTorch, too.
        """
        forms = {**PLAIN, **(chosen or {})}
        functions: dict[str, Callable[..., Any]] = {}
        for operator, form in forms.items():
            functions |= _functions(operator, PLAIN[operator])
            if form != PLAIN[operator]:
                functions |= _functions(operator, form)
        return cls(**functions, forms=forms)

    @property
    def generated(self) -> bool:
        """Whether any form is compiled on the machine that it runs on, by itself."""
        return not GENERATED.isdisjoint(self.forms.values())

    def without_generated(self) -> Operators:
        """The same forms, but plain PyTorch in the place of those that are compiled on the machine.

        In as little memory: the micro-batch may have been chosen for it.
        """
        instead = {**PLAIN, "head_loss": "chunked"}
        return Operators.of(
            {name: instead[name] if form in GENERATED else form for name, form in self.forms.items()}
        )


def _functions(operator: str, form: str) -> dict[str, Callable[..., Any]]:
    """The functions of an operator that a form has."""
    if (registered := find("operator", form)) is not None:
        own = {name: getattr(registered.make, name, None) for name in FUNCTIONS[operator]}
        return {
            name: _checked(name, registered.origin, function)
            for name, function in own.items()
            if function is not None
        }
    module, _, function = FORMS[operator][form].partition(":")
    holder = importlib.import_module(module)
    if hasattr(holder, "prepare"):
        holder.prepare(form)
    if function:
        return {FUNCTIONS[operator][0]: getattr(holder, function)}
    return {name: getattr(holder, name) for name in FUNCTIONS[operator] if hasattr(holder, name)}


def _checked(name: str, origin: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of other code; it raises UserError where its result has another shape or type than it must.

    Such a result would fail far from where it was made, or be broadcast without a word.
    """
    if (like := LIKE.get(name)) is None:
        return function  # models and optimizers check these

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        found, wanted = result if len(like) > 1 else (result,), [arguments[index] for index in like]
        if not _alike(found, wanted):
            raise UserError(
                f"{origin}.{name} must return {_described(wanted)}; it returned {_described(found)}"
            )
        return result

    return call


def _alike(found: Any, wanted: Sequence[Tensor]) -> bool:
    """Whether `found` are tensors of the shapes and types of `wanted`."""
    if not isinstance(found, (tuple, list)) or len(found) != len(wanted):
        return False
    return all(
        isinstance(one, Tensor) and one.shape == other.shape and one.dtype == other.dtype
        for one, other in zip(found, wanted, strict=True)
    )


def _described(values: Any) -> str:
    """Shape and type of each value, as in "(2, 3) torch.bfloat16"."""
    if not isinstance(values, (tuple, list)):
        return f"no tuple but {type(values).__name__}"
    shown = [
        f"{tuple(each.shape)} {each.dtype}" if isinstance(each, Tensor) else type(each).__name__
        for each in values
    ]
    return " and ".join(shown)


def replace_functions(model: nn.Module, old: Operators, new: Operators) -> None:
    """Makes the modules of `model` that hold `old`, or functions of it, hold those of `new`."""
    names = [name for functions in FUNCTIONS.values() for name in functions]
    instead: dict[Any, Any] = {getattr(old, name): getattr(new, name) for name in names}
    for module in model.modules():
        for attribute, value in vars(module).items():
            if value is old:
                setattr(module, attribute, new)
            elif inspect.isroutine(value) and value in instead:
                setattr(module, attribute, instead[value])


TORCH = Operators.of()
"""Plain PyTorch throughout."""
