"""Accelerate's own side of a launch: its questionnaire, its files, its launchers' environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config import cluster
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

NONE = object()


def told_by_accelerate(file: Path, *options: str) -> dict[str, str]:
    """The environment that `accelerate launch` makes for its processes, as far as it is accelerate's."""
    machines = ["--main_process_ip", "127.0.0.1"]
    command = ["--config_file", str(file), *machines, *options, "-m", "llmkit"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    if args.use_deepspeed:
        environment = prepare_deepspeed_cmd_env(args)[1]
    elif args.multi_gpu or args.use_fsdp or args.use_megatron_lm:
        environment = prepare_multi_gpu_env(args)
    else:
        environment = prepare_simple_launcher_cmd_env(args)[1]
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE", "FSDP"))}


def written(folder: Path, text: str) -> Path:
    """A configuration file of accelerate's with this in it."""
    path = folder / "accelerate.yaml"
    path.write_text(f"compute_environment: LOCAL_MACHINE\nnum_processes: 2\nmain_process_port: 0\n{text}")
    return path


def questioned(folder: Path, answers: dict[str, Any], patch: pytest.MonkeyPatch) -> Path:
    """The file that `accelerate config` writes; of what `answers` does not name, by a part of the question,
    it takes the default."""
    left = dict(answers)

    def answer(text: str, default: Any) -> Any:
        key = next((part for part in left if part in text), None)
        return default if key is None else left.pop(key)

    def ask_field(
        text: str, convert: Callable[[Any], Any] | None = None, default: Any = None, error_message: str = ""
    ) -> Any:
        value = answer(text, NONE)
        if value is NONE:
            return default
        return convert(str(value)) if convert else value

    def ask_options(
        text: str, options: list[Any], convert: Callable[[Any], Any] | None = None, default: int = 0
    ) -> Any:
        value = answer(text, NONE)
        index = default if value is NONE else options.index(value)
        return convert(index) if convert else index

    patch.setattr(cluster, "_ask_field", ask_field)
    patch.setattr(cluster, "_ask_options", ask_options)
    path = folder / "default_config.yaml"
    cluster.get_cluster_input().to_yaml_file(path)
    assert not left, f"never asked: {left}"
    return path
