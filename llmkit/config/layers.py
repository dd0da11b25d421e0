"""Notes on settings that files and the command line combine in ways that were hardly intended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmkit.config.keys import all_keys, general, numbered
from llmkit.config.mistakes import COMMAND_LINE, display, listed
from llmkit.config.schema import Config
from llmkit.config.tree import Node

SHOWN = 8
"""More settings than this are counted, not shown."""

GROUPS = (("model",), ("optimizer", "schedule"), ("data.tokenizer",))
"""Sections whose settings are chosen together."""

CHOICES: dict[str, tuple[str, ...]] = {
    "model.hidden_size": ("model.num_attention_heads", "model.head_dim", "model.intermediate_size"),
    "optimizer.name": ("optimizer", "schedule"),
    "schedule.name": ("schedule.min_lr_ratio", "schedule.decay_fraction", "schedule.decay_shape"),
    "data.tokenizer.type": ("data.tokenizer",),
    "data.tokenizer.path": ("data.tokenizer.end_of_text", "data.tokenizer.chat_template"),
    "data.tokenizer.name": (
        "data.tokenizer.revision", "data.tokenizer.end_of_text", "data.tokenizer.chat_template"
    ),
    "data.sources.N.type": (
        "data.sources.N.path", "data.sources.N.record", "data.sources.N.text_field",
        "data.sources.N.messages_field", "data.sources.N.prompt_field", "data.sources.N.completion_field",
        "data.sources.N.ids_field", "data.sources.N.separator",
    ),
    "data.sources.N.dataset": (
        "data.sources.N.subset", "data.sources.N.split", "data.sources.N.revision"
    ),
}  # fmt: skip
"""A choice: the settings, or sections of them, that belong to one of its values."""


@dataclass(frozen=True)
class Layer:
    """The settings of one file, or of the command line.

    settings: node of each setting by its dotted key; a list of sections under its own key, too. resets: the
    sections of which it drops what earlier layers say.
    """

    name: str
    settings: dict[str, Node]
    resets: tuple[str, ...] = ()


@dataclass
class Layers:
    """All layers, in the order in which they are merged: a later one wins.

    lists: for each `extends:` that names several files, the layers of each of these files.
    schema: of which the settings are.
    """

    layers: list[Layer] = field(default_factory=list)
    lists: list[list[range]] = field(default_factory=list)
    schema: type[Config] = Config

    def find(self, path: str, among: range) -> tuple[int, Node] | None:
        """Returns the last of some layers that sets a path, with its value; None if none does."""
        above = [path[:end] for end, letter in enumerate(path) if letter == "."]
        for index in reversed(among):
            settings = self.layers[index].settings
            if path in settings:
                return index, settings[path]
            if any(key in settings and isinstance(settings[key].value, list) for key in above):
                return None  # the list of an earlier layer was replaced
            if any(path.startswith(f"{section}.") for section in self.layers[index].resets):
                return None
        return None

    @property
    def all(self) -> range:
        return range(len(self.layers))

    def paths(self, among: range) -> dict[str, None]:
        """Returns every setting that some layers set."""
        return {
            path: None for index in among for path in self.layers[index].settings if self._is_setting(path)
        }

    def _is_setting(self, path: str) -> bool:
        key = all_keys(self.schema).get(general(path))
        return key is not None and not key.is_section

    def default(self, path: str) -> str:
        """Returns the default of a setting, as YAML would write it."""
        return all_keys(self.schema)[general(path)].default


def flat(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Every setting below a node by its dotted key; entries of a list of sections are numbered from 0."""
    if isinstance(node.value, dict):
        for name, below in node.value.items():
            yield from flat(below, f"{prefix}.{name}" if prefix else name)
        return
    yield prefix, node
    if isinstance(node.value, list):
        for index, entry in enumerate(node.value):
            if isinstance(entry.value, dict):
                yield from flat(entry, f"{prefix}.{index}")


def mixed(layers: Layers) -> Iterator[str]:
    """Yields notes on files of one `extends:` list where a later one changes part of a group, but not all."""
    for files in layers.lists:
        for later, over in enumerate(files):
            for under in files[:later]:
                for group in GROUPS:
                    yield from _mixed(layers, under, over, group)


def _mixed(layers: Layers, under: range, over: range, group: tuple[str, ...]) -> Iterator[str]:
    names = [path for path in layers.paths(under) if path.startswith(tuple(f"{name}." for name in group))]
    changed, kept = [], []
    for path in names:
        final, before = layers.find(path, layers.all), layers.find(path, under)
        if final is None or before is None:
            continue
        if final[0] in over and display(final[1].plain()) != display(before[1].plain()):
            old, new = (display(found[1].plain()) for found in (before, final))
            changed.append(f"{path} {old} -> {new} ({_location(final[1])})")
        elif final[0] in under:
            kept.append(path)
    if changed and kept:
        first, last = layers.layers[under[-1]].name, layers.layers[over[-1]].name
        count = f"{len(changed)} of the {len(changed) + len(kept)} {' and '.join(group)} settings"
        yield (
            f"{last} changes {count} of {first}, which comes before it in extends: {listed(changed, SHOWN)}; "
            "the last file of a list wins: put the right one last, or set these in the file that extends both"
        )


def tied(layers: Layers) -> Iterator[str]:
    """Yields notes on settings that were given for another choice than the one that holds in the end."""
    affected: dict[tuple[str, str], list[str]] = {}
    for path in layers.paths(layers.all):
        found = layers.find(path, layers.all)
        if found is None or layers.default(path) == display(found[1].plain()):
            continue
        for choice in _choices(path):
            if other := _meant_for(layers, choice, found[0]):
                what = f"{path} {display(found[1].plain())} ({_location(found[1])})"
                affected.setdefault((choice, other), []).append(what)
    for (choice, other), settings in affected.items():
        final = layers.find(choice, layers.all)
        assert final is not None
        value, one = display(final[1].plain()), len(settings) == 1
        yield (
            f"{choice} is {value} ({_location(final[1])}), but {listed(settings, SHOWN)} "
            f"{'was' if one else 'were'} set for {other}; set {'it' if one else 'each'} for {value} too"
        )


def _choices(path: str) -> Iterator[str]:
    """Yields the choices that a setting belongs to, in the same entries of lists."""
    name = general(path)
    for choice, below in CHOICES.items():
        if name != choice and f"{name}.".startswith(tuple(f"{each}." for each in below)):
            yield numbered(choice, path)


def _meant_for(layers: Layers, choice: str, index: int) -> str:
    """What a choice was when a layer set what is tied to it; "" if it is the same in the end, or was open."""
    final, then = layers.find(choice, layers.all), layers.find(choice, range(index + 1))
    if final is None:
        return ""
    other = layers.default(choice) if then is None else display(then[1].plain())
    return "" if other in (display(final[1].plain()), "null", "required") else other


def _location(node: Node) -> str:
    return COMMAND_LINE if node.location.startswith(COMMAND_LINE) else node.location
