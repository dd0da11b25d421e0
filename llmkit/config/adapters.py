"""Which full tensors the low-rank adapters of `train.lora` are, from the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkit.config.derive import known_vocab_size, resolved_model
from llmkit.config.lora_section import Lora
from llmkit.config.mistakes import Mistake, display
from llmkit.config.model_section import Model
from llmkit.config.parameters import FullTensor
from llmkit.config.patterns import kinds_of, matches
from llmkit.config.settings import Settings
from llmkit.errors import UserError

LORA_A, LORA_B = "lora_A", "lora_B"


def is_adapter(name: str) -> bool:
    """Whether a full tensor is a part of an adapter, by its name."""
    return name.endswith((f".{LORA_A}", f".{LORA_B}"))


def is_target(layer: str, targets: Sequence[str]) -> bool:
    """Whether patterns name a layer, by its full name or the last part of it."""
    own = layer.rpartition(".")[2]
    return any(matches(pattern, layer) or matches(pattern, own) for pattern in targets)


def trained_tensors(tensors: Sequence[FullTensor], lora: Lora) -> tuple[FullTensor, ...]:
    """The full tensors that are trained, of the model's: all of them, or the adapters of the targets."""
    if not lora.rank:
        return tuple(tensors)
    return tuple(
        FullTensor(f"{layer}.{part}", shape, True, f"{tensor.stored_in.removesuffix('.weight')}.{part}")
        for tensor, layer in _layers(tensors)
        if is_target(layer, lora.targets)
        for part, shape in ((LORA_A, (lora.rank, tensor.shape[1])), (LORA_B, (tensor.shape[0], lora.rank)))
    )


def _layers(tensors: Sequence[FullTensor]) -> Iterator[tuple[FullTensor, str]]:
    """The weights that can be adapted, with the names of their layers."""
    return ((each, each.name.removesuffix(".weight")) for each in tensors if each.linear)


def check_lora(s: Settings) -> Iterator[Mistake]:
    """Checks that each pattern names a layer and the rank is below full, that dropout is possible, and that
    nothing is said of adapters where there are none."""
    lora, at = s.config.train.lora, "train.lora"
    if not lora.rank:
        note = "give the adapters a rank, as in 16, or 0 to train all weights"
        given = [name for name in Lora.model_fields if s.origins.get(f"{at}.{name}", "default") != "default"]
        for name in given if "rank" not in given else ():
            yield s.mistake("{0} needs {1} to be given", f"{at}.{name}", f"{at}.rank", note=note)
        return
    if s.config.train.init_from is None:
        note = "without trained weights there is nothing to adapt"
        yield s.mistake("{0} needs {1} to be given", f"{at}.rank", "train.init_from", note=note)
    if lora.input_dropout and s.config.parallel.tensor_parallel_size > 1:
        note = "ranks that share a layer would drop different inputs of it"
        paths = f"{at}.input_dropout", "parallel.tensor_parallel_size"
        yield s.mistake("{0} does not go with {1}", *paths, note=note)
    if lora.base_form is not None:
        yield from _check_quantised(s)
    try:  # the size of the vocabulary changes no layer
        model = resolved_model(s.config, known_vocab_size(s.config, s.facts.tokenizer_size) or 1)
    except (UserError, ValueError):  # see `check_model`
        return
    layers = {name: min(tensor.shape) for tensor, name in _layers(model.tensors)}
    for pattern in lora.targets:
        if not any(is_target(name, [pattern]) for name in layers):
            note = f"the layers are {', '.join(kinds_of(list(layers))) or 'none'}"
            yield s.mistake(f"{{0}}: no linear layer matches {display(pattern)}", f"{at}.targets", note=note)
    small = {size: name for name, size in layers.items() if is_target(name, lora.targets)}
    if small and lora.rank > min(small):
        note = f"{small[min(small)]} has rank {min(small)} itself; choose a smaller one"
        yield s.mistake("{0} is too large", f"{at}.rank", note=note)


def _check_quantised(s: Settings) -> Iterator[Mistake]:
    """Checks that frozen weights can be kept in fewer bits."""
    at = "train.lora.quantize_base"
    if s.config.train.precision == "fp8":
        note = "products in 8 bits need the weights as they are; leave one of them out"
        yield s.mistake("{0} does not go with {1}", at, "train.precision", note=note)
    if not isinstance(s.config.model, Model):
        yield s.mistake("{0} is for llmkit's own model, not for {1}", at, "model.type")
