"""The choice of forms: by rule, by name, and refused with place and reason where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llmkit import registry
from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts
from llmkit.plan import operators as table
from llmkit.plan.form_rules import Choice, Situation
from llmkit.plan.operators import FORMS, Form, choose_operators, show_choices
from llmkit.precision import PRECISIONS
from tests.shapes import LLAMA_STYLE

CPU, GPU = DeviceFacts(), DeviceFacts("cuda", has_bf16_units=True, capability=(9, 0), triton=True)
ONE_PROCESS = Layout()


def choose(
    device: DeviceFacts | None = CPU,
    compiled: bool = False,
    precision: str = "fp32",
    layout: Layout = ONE_PROCESS,
    shape: ModelShape | None = None,
    **kernels: Any,
) -> tuple[dict[str, Choice], list[str]]:
    """The choices, and the text of what is wrong."""
    config = Config.model_validate(
        {"data": {"sources": [{"type": "stdlib"}]}, "train": {"max_steps": 1}, "kernels": kernels}
    )
    situation = Situation(config, shape, layout, PRECISIONS[precision], device, compiled)
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


AVX512 = replace(CPU, has_bf16_units=True, avx512_bf16=True)


def test_the_avx512_linear_layer_is_for_compiled_bf16_on_such_a_cpu() -> None:
    able = AVX512
    assert choose(able, True, "bf16")[0]["linear"].form == "avx512"
    assert choose(able, True, "bf16", backend="torch")[0]["linear"].form == "torch"
    for device, compiled, precision in ((able, False, "bf16"), (able, True, "fp32"), (CPU, True, "bf16")):
        assert choose(device, compiled, precision)[0]["linear"].form == "torch"
    forced = {"linear": "avx512"}
    assert choose(None, precision="fp32", operators=forced)[1] == [], "precision is open"
    assert choose(able, False, "bf16", operators=forced)[0]["linear"].form == "avx512"
    for device, precision, why in (
        (able, "fp32", "is for bf16"),
        (CPU, "bf16", "needs a CPU with AVX-512 BF16"),
        (replace(able, compiler_missing="no C++ compiler is found"), "bf16", "no C++ compiler"),
    ):
        (only,) = choose(device, precision=precision, operators=forced)[1]
        assert why in only


H100 = replace(GPU, varlen=True)
PACKAGES = replace(H100, flash=frozenset({"flash3", "flash4"}))
WINDOWED = ModelShape(
    vocab_size=99, padded_vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=32, intermediate_size=64, max_position_embeddings=2048,
    sliding_window=128,
)  # fmt: skip


@pytest.mark.parametrize(
    ("device", "compiled", "changes", "form"),
    [
        (CPU, True, {}, "blocks"),
        (CPU, True, {"documents": True}, "blocks"),
        (CPU, True, {"activation_checkpointing": "selective"}, "sdpa"),
        (CPU, False, {}, "sdpa"),
        (CPU, False, {"documents": True}, "varlen"),
        (H100, True, {}, "sdpa"),
        (H100, True, {"documents": True}, "varlen"),
        (H100, True, {"shape": WINDOWED}, "varlen"),
        (H100, True, {"shape": replace(WINDOWED, sliding_window=5000)}, "sdpa"),
        (H100, True, {"documents": True, "shape": replace(WINDOWED, attention_dropout=0.1)}, "sdpa"),
        (H100, True, {"documents": True, "shape": replace(WINDOWED, attn_logit_softcapping=50.0)}, "sdpa"),
        (H100, True, {"documents": True, "shape": replace(WINDOWED, head_dim=30)}, "sdpa"),
        (H100, True, {"documents": True, "precision": "fp32"}, "sdpa"),
        (replace(H100, capability=(7, 5)), True, {"documents": True}, "sdpa"),
        (replace(H100, varlen=False), True, {"documents": True}, "sdpa"),
    ],
)
def test_attention_is_the_form_that_skips_most(
    device: DeviceFacts, compiled: bool, changes: dict[str, Any], form: str
) -> None:
    config = Config.model_validate(
        {
            "data": {"sources": [{"type": "stdlib"}], "document_masks": changes.get("documents", False)},
            "train": {"max_steps": 1},
        }
    )
    layout = Layout(activation_checkpointing=changes.get("activation_checkpointing", "none"))
    precision = PRECISIONS[changes.get("precision", "bf16")]
    situation = Situation(config, changes.get("shape"), layout, precision, device, compiled)
    chosen, mistakes = choose_operators(Loaded.of(config), situation)
    assert (chosen["attention"].form, mistakes) == (form, [])


def test_attention_of_variable_length_is_refused_with_the_reason() -> None:
    forced = {"attention": "varlen"}
    for device, precision, why in (
        (replace(H100, varlen=False), "bf16", "2.11 and newer have it"),
        (replace(H100, capability=(7, 5)), "bf16", "compute capability 8.0"),
        (H100, "fp32", "computes in bf16, not fp32"),
        (CPU, "fp32", "cannot be compiled"),
    ):
        (only,) = choose(device, True, precision, operators=forced)[1]
        assert why in only


def situation_of(shape: ModelShape | None, device: DeviceFacts | None = H100, **changes: Any) -> Situation:
    """A situation in bf16; changes: of attention's settings, the backend, or the precision."""
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "document_masks": changes.get("documents", False)},
        "train": {"max_steps": 1},
        "run": {"deterministic": changes.get("deterministic", False)},
        "kernels": {
            "backend": changes.get("backend", "auto"),
            "operators": {"attention": changes.get("asked", "auto")},
        },
    }
    precision = PRECISIONS[changes.get("precision", "bf16")]
    return Situation(Config.model_validate(settings), shape, Layout(), precision, device, True)


PLAIN = replace(WINDOWED, sliding_window=None)
ALL = ("cudnn", "flash", "efficient")


@pytest.mark.parametrize(
    ("situation", "forms"),
    [
        (situation_of(PLAIN), ALL),
        (situation_of(PLAIN, PACKAGES), ("cudnn", "flash", "flash3", "flash4", "efficient")),
        (situation_of(PLAIN, PACKAGES, backend="torch"), ALL),
        (
            situation_of(PLAIN, replace(PACKAGES, capability=(10, 0))),
            ("cudnn", "flash", "flash4", "efficient"),
        ),
        (situation_of(PLAIN, replace(PACKAGES, capability=(12, 0))), ALL),
        (situation_of(replace(PLAIN, head_dim=192), PACKAGES), ("flash", "flash3", "efficient")),
        (situation_of(replace(PLAIN, attention_dropout=0.1), PACKAGES), ALL),
        (situation_of(replace(WINDOWED, sliding_window=5000)), ALL),
        (situation_of(replace(PLAIN, num_key_value_heads=1)), ("cudnn", "flash")),
        (situation_of(replace(PLAIN, head_dim=192)), ("flash", "efficient")),
        (situation_of(replace(PLAIN, head_dim=264)), ()),
        (situation_of(replace(PLAIN, head_dim=192, num_key_value_heads=1)), ()),
        (situation_of(replace(PLAIN, head_dim=36)), ()),
        (situation_of(WINDOWED), ()),
        (situation_of(PLAIN, documents=True), ()),
        (situation_of(replace(PLAIN, attn_logit_softcapping=50.0)), ()),
        (situation_of(PLAIN, precision="fp32"), ()),
        (situation_of(PLAIN, replace(H100, capability=(7, 5))), ()),
        (situation_of(PLAIN, CPU), ()),
        (situation_of(PLAIN, None), ()),
        (situation_of(None), ()),
        (situation_of(PLAIN, deterministic=True), ()),
        (situation_of(PLAIN, asked="flash"), ()),
    ],
)
def test_kernels_are_timed_where_several_serve(situation: Situation, forms: tuple[str, ...]) -> None:
    assert table.timed_forms(situation) == forms


def test_a_measured_form_is_chosen_where_it_was_to_be_measured() -> None:
    fastest = Choice("attention", "flash", "measured: flash 1.00 ms, cudnn 2.00 ms")

    def choice(situation: Situation) -> Choice:
        return choose_operators(Loaded.of(situation.config), replace(situation, measured=fastest))[0][
            "attention"
        ]

    assert choice(situation_of(PLAIN)) == fastest
    assert choice(situation_of(PLAIN, asked="efficient")) == Choice("attention", "efficient", "as given")
    assert choice(situation_of(PLAIN, precision="fp32")).form == "sdpa"
    assert choice(situation_of(WINDOWED)).form == "varlen"


def test_kernels_of_a_gpu_are_refused_with_the_reason() -> None:
    for shape, device, precision, form, why in (
        (PLAIN, CPU, "bf16", "flash", "flash attention needs a GPU"),
        (PLAIN, H100, "fp32", "cudnn", "cuDNN's attention computes in bf16, not fp32"),
        (WINDOWED, H100, "bf16", "flash", "without masks of documents or windows"),
        (replace(PLAIN, head_dim=136), H100, "bf16", "cudnn", "takes heads of 8, 16, ... 128, not 136"),
        (replace(PLAIN, num_key_value_heads=1), H100, "bf16", "efficient", "as many key and value heads"),
        (
            replace(PLAIN, attn_logit_softcapping=9.0),
            None,
            "bf16",
            "flash",
            "flash attention has no soft cap",
        ),
        (PLAIN, H100, "bf16", "flash3", "flash attention 3 is not installed (flash_attn_interface), or this"),
        (PLAIN, H100, "bf16", "flash4", "flash attention 4 is not installed (flash_attn/cute/interface.py)"),
        (PLAIN, replace(PACKAGES, capability=(8, 0)), "bf16", "flash3", "GPU of compute capability 9.x"),
        (replace(PLAIN, attention_dropout=0.1), PACKAGES, "bf16", "flash4", "attention 4 has no dropout"),
        (PLAIN, replace(H100, capability=None), "bf16", "efficient", "compute capability 8.0 or newer"),
    ):
        (only,) = choose(device, True, precision, shape=shape, operators={"attention": form})[1]
        assert why in only


def test_the_avx512_attention_is_for_causal_attention_without_more() -> None:
    able = AVX512

    def form(shape: ModelShape | None, device: DeviceFacts = able, documents: bool = False) -> str:
        settings = {"sources": [{"type": "stdlib"}], "sequence_length": 64, "document_masks": documents}
        config = Config.model_validate({"data": settings, "train": {"max_steps": 1}})
        situation = Situation(config, shape, Layout(), PRECISIONS["bf16"], device, compiled=True)
        return choose_operators(Loaded.of(config), situation)[0]["attention"].form

    shape = replace(LLAMA_STYLE, sliding_window=None, attention_dropout=0.0)
    assert form(shape) == form(replace(shape, sliding_window=64)) == "avx512"
    assert form(replace(shape, sliding_window=63)) == form(replace(shape, attention_dropout=0.1)) == "blocks"
    assert form(shape, documents=True) == form(None) == form(shape, CPU) == "blocks"


def test_what_is_asked_for_and_cannot_be_is_named_all_at_once() -> None:
    _, mistakes = choose(operators={"norm": "triton", "attention": "flash9"})
    first, second = mistakes
    assert first.startswith('kernels.operators.norm "triton" (settings): Triton kernels run on a GPU')
    assert "attention has no form of this name; it has avx512, varlen, blocks, matmul, cudnn, " in second
    _, (only,) = choose(backend="triton")
    assert only.startswith('kernels.backend "triton" (settings): Triton kernels run on a GPU')


def test_triton_forms_refuse_what_they_cannot_serve_and_say_what_to_set(monkeypatch) -> None:
    layout = Layout(engine="deepspeed", zero_stage=2)
    assert choose(GPU, layout=layout, backend="triton")[1] == [
        'kernels.backend "triton" (settings): DeepSpeed takes no other AdamW than PyTorch\'s; '
        "set kernels.operators.adamw to torch"
    ]
    assert choose(GPU, layout=layout, backend="triton", operators={"adamw": "torch"})[1] == []
    monkeypatch.setattr(table, "FORMS", FORMS)
    wide = replace(LLAMA_STYLE, hidden_size=40_960)
    assert choose(GPU, shape=wide)[0]["norm"].form == "torch"
    (mistake,) = choose(GPU, shape=wide, operators={"norm": "triton"})[1]
    assert "rows of at most 8,192, not 40,960; set kernels.operators.norm to torch" in mistake


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
    for answer in (True, ""):
        Mine.refuses = staticmethod(lambda situation, answer=answer: answer)
        (refusal,) = choose(operators={"norm": "mine"})[1]
        assert f".Mine.refuses must return a reason, or None; it returned {answer!r}" in refusal
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


@pytest.mark.parametrize(
    ("device", "compiled", "micro", "form"),
    [
        (CPU, True, 1, "full"),
        (CPU, True, 65_536, "chunked"),
        (CPU, False, 1, "chunked"),
        (AVX512, True, 1, "avx512"),
        (AVX512, False, 1, "chunked"),
        (replace(AVX512, compiler_missing="no C++ compiler"), True, 65_536, "chunked"),
        (GPU, True, 1, "triton"),
        (GPU, False, 65_536, "triton"),
        (replace(GPU, triton=False), True, 1, "chunked"),
    ],
)
def test_the_loss_keeps_few_logits(device, compiled, micro, form):
    config = Config.model_validate(
        {
            "data": {"sources": [{"type": "stdlib"}], "sequence_length": 8},
            "train": {"max_steps": 1, "global_batch_size": micro, "micro_batch_size": micro},
        }
    )
    situation = Situation(config, LLAMA_STYLE, ONE_PROCESS, PRECISIONS["bf16"], device, compiled)
    chosen, mistakes = choose_operators(Loaded.of(config), situation)
    assert chosen["head_loss"].form == form and not mistakes
