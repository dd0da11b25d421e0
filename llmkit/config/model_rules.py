"""Settings of a model that contradict each other, in a configuration or in a stored shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.config.mistakes import display
from llmkit.config.model_section import DENSE, Model

if TYPE_CHECKING:
    from llmkit.config.shape import ModelShape

ROPE_SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
"""Type of rope_scaling: the settings that it uses."""
ROPE_NEEDS = {"linear": 1, "llama3": 4, "yarn": 2}
"""How many of these, the first ones, must be given."""


class Contradiction(NamedTuple):
    """In `what`, {0}, {1} stand for settings of the section model, named by `names`."""

    what: str
    names: tuple[str, ...]
    note: str = ""

    def text(self, model: Model | ModelShape) -> str:
        """The message, with each setting's value."""
        shown = [f"model.{name} {display(_value(model, name))}" for name in self.names]
        return self.what.format(*shown) + (f"; {self.note}" if self.note else "")


def contradictions(model: Model | ModelShape) -> Iterator[Contradiction]:
    """Everything in the settings that cannot hold together, or would have no effect."""
    yield from _rope(model)
    yield from _windows(model)
    yield from _experts(model)
    if model.qk_norm == "full" and model.key_shift:
        yield Contradiction("{0} does not go with {1}", ("qk_norm", "key_shift"))
    if model.norm_weight_offset and not model.norm_weight:
        yield Contradiction("{0} has no effect with {1}", ("norm_weight_offset", "norm_weight"))


def _windows(model: Model | ModelShape) -> Iterator[Contradiction]:
    types = model.layer_types
    if model.sliding_rope_theta is not None and model.sliding_window is None:
        yield Contradiction("{0} has no effect with {1}", ("sliding_rope_theta", "sliding_window"))
    if types is None:
        return
    if model.sliding_window is None and "sliding_attention" in types:
        what = "{0} names layers with a window, but there is none: {1}"
        yield Contradiction(what, ("layer_types", "sliding_window"))
    if model.sliding_window is not None and "sliding_attention" not in types:
        what = "{0} has no effect, as {1} gives it to no layer"
        yield Contradiction(what, ("sliding_window", "layer_types"))


def _experts(model: Model | ModelShape) -> Iterator[Contradiction]:
    moe, path = model.moe, "moe.num_experts"
    if not moe.num_experts:
        for name in type(moe).model_fields:
            if name != "num_experts" and getattr(moe, name) != getattr(DENSE, name):
                yield Contradiction("{0} has no effect with {1}", (f"moe.{name}", path))
        return
    if moe.num_experts_per_tok > moe.num_experts:
        yield Contradiction("{0} is more than {1}", ("moe.num_experts_per_tok", path))
    if model.mlp_bias:
        yield Contradiction("{0} does not go with {1}", ("mlp_bias", path), "experts have no biases")
    if not any(map(moe.is_in, range(model.num_hidden_layers))):
        names = (path, "moe.first_dense_layers", "moe.every_n_layers", "num_hidden_layers")
        yield Contradiction("{0} has no effect: with {1}, {2} and {3} no layer has experts", names)


def _rope(model: Model | ModelShape) -> Iterator[Contradiction]:
    scaling, path = model.rope_scaling, "rope_scaling.rope_type"
    if model.position_embedding != "rope":
        changed = [path] * (scaling.rope_type != "default")
        changed += ["partial_rotary_factor"] * (model.partial_rotary_factor != 1.0)
        changed += ["sliding_rope_theta"] * (model.sliding_rope_theta is not None)
        for name in changed:
            yield Contradiction("{0} does not go with {1}", (name, "position_embedding"))
        return
    used = ROPE_SETTINGS[scaling.rope_type]
    for name in type(scaling).model_fields:
        if name != "rope_type" and name not in used and getattr(scaling, name) is not None:
            yield Contradiction("{0} has no effect with {1}", (f"rope_scaling.{name}", path))
    for name in used[: ROPE_NEEDS.get(scaling.rope_type, 0)]:
        if getattr(scaling, name) is None:
            yield Contradiction(f"{{0}} needs model.rope_scaling.{name}", (path,))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if low is not None and high is not None and low >= high:
        names = ("rope_scaling.low_freq_factor", "rope_scaling.high_freq_factor")
        yield Contradiction("{0} is not smaller than {1}", names)
    if (scaling.mscale is None) != (scaling.mscale_all_dim is None):
        names = ("rope_scaling.mscale", "rope_scaling.mscale_all_dim")
        yield Contradiction("{0} and {1} are given together, or neither", names)
    width = _head_dim(model)
    if width is not None and model.partial_rotary_factor != 1.0:
        rotated = int(width * model.partial_rotary_factor)
        if rotated < 2 or rotated % 2:
            what = f"{{0}} of heads of width {width} is {rotated} channels; rope rotates pairs"
            yield Contradiction(what, ("partial_rotary_factor",))


def _head_dim(model: Model | ModelShape) -> int | None:
    """The width of a head; None where the settings make none."""
    if model.head_dim is not None:
        return model.head_dim
    width, rest = divmod(model.hidden_size, model.num_attention_heads)
    return None if rest else width


def _value(model: Model | ModelShape, name: str) -> Any:
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    return found
