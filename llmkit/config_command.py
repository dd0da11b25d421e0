"""`llmkit config`: the settings of a run and what follows from them; all settings that there are."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

from llmkit.command_line import print_json
from llmkit.config.json_schema import editor_schema
from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.config.show import coloured, keys_named, show, show_keys, show_section, wrapped
from llmkit.error_text import terminal_width
from llmkit.errors import UserError
from llmkit.plan import resolve_plan
from llmkit.plan.document import document
from llmkit.plan.model_alone import STAND_INS, names_a_model_alone, show_model
from llmkit.plan.text import show_plan
from llmkit.planner.assumed import Load


def settings_command(options: argparse.Namespace, load: Load, color: bool) -> int:
    """Prints a configuration, each value with its origin, and its plan. Raises UserError for mistakes."""
    if options.run_folder:
        loaded = load(options.config, options.overrides)
        resolve_plan(loaded)
        run = loaded.config.run
        folder = os.path.abspath(os.path.join(run.dir, run.name))
        if options.json:
            print_json({"run_folder": folder})
        else:
            print(folder)
        return 0
    loaded, alone = _loaded(options, load)
    plan = resolve_plan(loaded)
    if options.json:
        print_json(document(loaded, plan, alone=alone))
        return 0
    if alone:  # the rest is defaults, and remarks on what stands in for a run
        text = f"{show_section(loaded, 'model')}\n{show_model(plan)}"
    else:
        text = show(loaded, show_plan(plan))
    if (width := terminal_width(sys.stdout)) is not None:
        text = wrapped(text, width)
    print(coloured(text) if color else text, end="")
    return 0


def _loaded(options: argparse.Namespace, load: Load) -> tuple[Loaded, bool]:
    """The configuration, and whether it names a model alone."""
    try:
        return load(options.config, options.overrides), False
    except UserError as mistakes:
        try:
            loaded = load(options.config, options.overrides, assumed=STAND_INS)
        except UserError:
            raise mistakes from None
        if not names_a_model_alone(loaded):
            raise
        return loaded, True


def keys_command(options: argparse.Namespace, load: Load) -> int:
    """Prints what settings mean: those that are named, of a CONFIG with its plugins', or all."""
    names = [] if options.config is None else [options.config, *options.overrides]
    schema = Config
    if names and os.path.isfile(names[0]):  # whose plugins may have settings of their own
        schema, names = _class_of(names[0], load), names[1:]
    if options.json:
        print_json([asdict(key) for key in keys_named(names, schema)])
    else:
        print(show_keys(names, schema), end="")
    return 0


def schema_command(options: argparse.Namespace, load: Load) -> int:
    """Prints the JSON schema of a configuration file."""
    if options.overrides:
        raise UserError("config: --schema takes a CONFIG, for its plugins, and nothing else")
    schema = Config if options.config is None else _class_of(options.config, load)
    print(json.dumps(editor_schema(schema), indent=1))
    return 0


def _class_of(path: str, load: Load) -> type[Config]:
    """The class of a configuration, whether it is one of a run or of a model alone."""
    return type(_loaded(argparse.Namespace(config=path, overrides=[]), load)[0].config)
