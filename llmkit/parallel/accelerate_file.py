"""What a configuration file of accelerate will tell its processes, read before they are launched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from llmkit.config.mistakes import Mistake, error
from llmkit.config.yaml_reader import read_file
from llmkit.parallel.accelerate import VARIABLES

LAYOUTS = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "MEGATRON_LM": "ACCELERATE_USE_MEGATRON_LM",
}
"""`distributed_type`: the variable that says so."""
_DEEPSPEED = {
    **dict(VARIABLES.values()),
    "deepspeed_config_file": "ACCELERATE_DEEPSPEED_CONFIG_FILE",
    "deepspeed_moe_layer_cls_names": "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES",
    "zero3_save_16bit_model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
}
"""Keys of `deepspeed_config`: their variables."""
_AS_WRITTEN = ("deepspeed_config_file", "deepspeed_moe_layer_cls_names")


def variables_of(file: Path) -> dict[str, str]:
    """The variables that `accelerate launch --config_file FILE` sets, as far as llmkit reads them.

    Raises UserError where the file cannot be read.
    """
    mistakes = list[Mistake]()
    root = read_file(file, str(file), mistakes)
    if root is None or mistakes:
        raise error(mistakes, str(file))
    content = root.plain()
    assert isinstance(content, dict)
    return dict(_variables(content))


def _variables(content: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    kind = str(content.get("distributed_type", "NO"))
    precision = content.get("mixed_precision")
    yield "ACCELERATE_MIXED_PRECISION", "no" if precision in (None, False) else str(precision).lower()
    if content.get("debug") is True:
        yield "ACCELERATE_DEBUG_MODE", "true"
    if kind in LAYOUTS:
        yield LAYOUTS[kind], "true"
    if content.get("parallelism_config"):
        yield "ACCELERATE_USE_PARALLELISM_CONFIG", "true"
    dynamo, deepspeed = content.get("dynamo_config"), content.get("deepspeed_config")
    if isinstance(dynamo, Mapping) and (backend := dynamo.get("dynamo_backend")) is not None:
        yield "ACCELERATE_DYNAMO_BACKEND", str(backend).upper()
    if kind != "DEEPSPEED":
        return
    yield "ACCELERATE_USE_DEEPSPEED", "true"
    for name, value in deepspeed.items() if isinstance(deepspeed, Mapping) else ():
        if name in _DEEPSPEED and value is not None:
            yield _DEEPSPEED[name], str(value) if name in _AS_WRITTEN else str(value).lower()
