"""Which form of each operator a run computes with, and why; a pure choice, which imports no torch.

The functions behind the names are in `llmkit.kernels.operators`; rules in `form_rules`, `attention_rules`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.config.load import Loaded
from llmkit.config.mistakes import Mistake
from llmkit.config.operators import FLASH_PACKAGES, FUNCTIONS, GENERATED
from llmkit.plan import attention_rules as attention
from llmkit.plan import form_rules as rules
from llmkit.plan.form_rules import Choice, Rule, Situation, always, never
from llmkit.registry import find


@dataclass(frozen=True)
class Form:
    """One way to compute an operator.

    refuses: why it cannot be used in a situation; None where it can. best: why it is chosen where nothing is
    asked for; None where it is not. timed: whether it is one of those of which, where several can serve, only
    measuring tells the fastest.
    """

    name: str
    refuses: Rule = never
    best: Rule = always
    timed: bool = False


def triton_form(refuses: Rule = never, best: Rule = rules.uncompiled_gpu) -> Form:
    """The Triton form of a pointwise operator."""
    return Form("triton", lambda s: rules.triton_missing(s) or refuses(s), best)


TORCH = Form("torch")
FORMS: Mapping[str, tuple[Form, ...]] = {
    "linear": (
        Form("fp8", rules.only_by_setting("train.precision", "fp8"), rules.by_setting),
        Form("int8", rules.only_by_setting("train.lora.quantize_base", "int8"), rules.by_setting),
        Form("nf4", rules.only_by_setting("train.lora.quantize_base", "nf4"), rules.by_setting),
        Form("avx512", rules.no_avx512_linear, rules.compiled_bf16),
        Form("torch", rules.not_by_setting),
    ),
    "norm": (triton_form(rules.rows_too_wide), TORCH),
    "rotation": (triton_form(), TORCH),
    "activation": (triton_form(), TORCH),
    "dropout_add": (triton_form(), TORCH),
    "attention": (
        Form("avx512", rules.no_avx512, attention.plain_causal),
        Form("varlen", attention.varlen_refuses, attention.documents_or_window),
        Form("blocks", best=attention.compiled_on_cpu),
        Form("matmul", best=never),
        Form("cudnn", attention.cudnn_refuses, never, timed=True),
        Form("flash", attention.flash_refuses, never, timed=True),
        Form("flash3", lambda s: attention.package_refuses(s, "flash3", (9,), 256), never, timed=True),
        Form("flash4", lambda s: attention.package_refuses(s, "flash4", (9, 10), 128), never, timed=True),
        Form("efficient", attention.efficient_refuses, never, timed=True),
        Form("sdpa"),
    ),
    "head_loss": (
        triton_form(best=rules.on_gpu),
        Form("avx512", rules.no_avx512, rules.compiled_bf16),
        Form("chunked", best=rules.many_logits),
        Form("full", best=rules.full),
    ),
    "gradient_norm": (TORCH,),
    "adamw": (triton_form(rules.optimizer_elsewhere, best=rules.unmeasured), TORCH),
    "muon": (Form("avx512", rules.no_avx512, rules.compiled_bf16), TORCH),
}
"""The forms of each operator, in the order in which they are considered; the last one runs everywhere."""


def choose_operators(loaded: Loaded, situation: Situation) -> tuple[dict[str, Choice], list[Mistake]]:
    """The form of every operator, and what is wrong with the forms that the configuration asks for."""
    chosen, mistakes = dict[str, Choice](), list[Mistake]()
    for operator, forms in FORMS.items():
        asked = getattr(loaded.config.kernels.operators, operator)
        choice, refusal = _choose(operator, forms, asked, situation)
        chosen[operator] = choice
        if refusal is not None:
            path = f"kernels.operators.{operator}" if asked != "auto" else "kernels.backend"
            note = f"{path}=auto takes a form that can serve this run"
            mistakes.append(loaded.settings.mistake(f"{{0}}: {refusal}", path, note=note))
    return chosen, list(dict.fromkeys(mistakes))


def timed_forms(situation: Situation) -> tuple[str, ...]:
    """The forms of attention that serve a run alike, so that the fastest is found by measuring; or none.

    A form that is asked for is not measured, nor is anything in a run that must repeat itself bit by bit.
    """
    config, shape = situation.config, situation.shape
    left_open = config.kernels.operators.attention == "auto" and not config.run.deterministic
    if not left_open or shape is None or situation.device is None or situation.layout.in_ring:
        return ()
    without = FLASH_PACKAGES if config.kernels.backend == "torch" else ()
    timed = [form for form in FORMS["attention"] if form.timed and form.name not in without]
    forms = tuple(form.name for form in timed if form.refuses(situation) is None)
    return forms if len(forms) > 1 else ()


def fast_forms_off(situation: Situation) -> list[str]:
    """Why the kernels that were written for this kind of device are not used, where they are not."""
    device = situation.device
    if device is None:
        return []
    if device.kind == "cuda":
        name, reason = "Triton", rules.triton_missing(situation)
    else:
        name, reason = "AVX-512", rules.no_avx512(situation)
        if reason is None and rules.compiled_bf16(situation) is None:
            reason = "they are chosen with torch.compile and llmkit's own engine"
    if situation.config.kernels.backend == "torch":
        reason = "kernels.backend is torch"
    return [f"no {name} kernels: {reason}"] if reason else []


def _choose(
    operator: str, forms: tuple[Form, ...], asked: str, situation: Situation
) -> tuple[Choice, str | None]:
    """The choice, and why it cannot be what was asked for."""
    backend, plain, measured = situation.config.kernels.backend, forms[-1], situation.measured
    named = {form.name: form for form in forms}
    if asked in named:
        return Choice(operator, asked, "as given"), named[asked].refuses(situation)
    if asked != "auto":
        return _registered(operator, asked, plain, situation)
    if backend == "triton" and "triton" in named:
        return Choice(operator, "triton", "kernels.backend"), named["triton"].refuses(situation)
    if measured is not None and measured.operator == operator and measured.form in timed_forms(situation):
        return measured, None
    for form in forms:
        if backend == "torch" and form.name in GENERATED:
            continue
        if form.refuses(situation) is None and (reason := form.best(situation)) is not None:
            return Choice(operator, form.name, reason), None
    raise AssertionError(f"the last form of {operator} is refused")


def _registered(operator: str, name: str, plain: Form, situation: Situation) -> tuple[Choice, str | None]:
    """The form that other code has registered under this name, or why it cannot be."""
    component, functions = find("operator", name), FUNCTIONS[operator]
    if component is None:
        forms = ", ".join(form.name for form in FORMS[operator])
        refusal = f"{operator} has no form of this name; it has {forms}, and what plugins register"
    elif (of := getattr(component.make, "operator", None)) != operator:
        refusal = f"{component.origin} is a form of {of!r} (its attribute `operator`), not of {operator}"
    elif not any(callable(getattr(component.make, each, None)) for each in functions):
        refusal = f"{component.origin} has none of the functions of {operator}: {', '.join(functions)}"
    else:
        answer: Any = getattr(component.make, "refuses", never)(situation)
        if answer is not None and not (isinstance(answer, str) and answer):
            answer = f"{component.origin}.refuses must return a reason, or None; it returned {answer!r}"
        return Choice(operator, name, f"as given, {component.origin}"), answer
    return Choice(operator, plain.name, "plain PyTorch"), refusal


def show_choices(chosen: Mapping[str, Choice]) -> list[tuple[str, str, str]]:
    """(operator, form, why) of each, those with the most common answer together at the end."""
    answers = Counter((choice.form, choice.reason) for choice in chosen.values())
    ((usual, _),) = answers.most_common(1)
    rows = [(c.operator, c.form, c.reason) for c in chosen.values() if (c.form, c.reason) != usual]
    return [*rows, (f"{'other' if rows else 'all'} operators", *usual)]
