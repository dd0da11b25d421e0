"""A user's own devices and links, from a YAML file.

devices:
  h100-600w:               # every key that is left out is as of the device that it is `like`
    like: h100
    watts: 600
    bf16_tflops: 900
    source: measured here
links:
  campus: {gbit_per_second: 100, share: 0.8, latency_us: 30, ports: 2, source: our switches}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from llmkit.config.mistakes import Mistake, error
from llmkit.config.section import Positive, Section
from llmkit.config.tree import Node, dotted, location_of
from llmkit.config.yaml_reader import read_file
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Device, Link

Above = Annotated[float, Field(gt=0.0)]
Part = Annotated[float, Field(gt=0.0, le=1.0)]


class DeviceSettings(Section):
    """A device of the file; what is None is as of the device named by `like`."""

    like: str
    source: str
    bf16_tflops: Above | None = None
    fp8_tflops: Above | None = None
    fp32_tflops: Above | None = None
    memory_gib: Above | None = None
    bandwidth_gb_per_second: Above | None = None
    watts: Above | None = None
    units: Positive | None = None
    products_share: Part | None = None
    memory_share: Part | None = None
    inside: str | None = None
    between: str | None = None
    per_node: Positive | None = None
    joined: Positive | None = None


class LinkSettings(Section):
    """A link of the file: of one port."""

    gbit_per_second: Above
    share: Part
    latency_us: Above
    source: str
    ports: Positive | None = None


class HardwareSettings(Section):
    """The file."""

    devices: dict[str, DeviceSettings] = Field(default_factory=dict)
    links: dict[str, LinkSettings] = Field(default_factory=dict)


def read_hardware(file: Path, base: Hardware | None = None) -> Hardware:
    """The tables with what a file adds to them, or replaces of the same name.

    Raises UserError, with file and line, where it cannot be read, or says what no hardware is.
    """
    base, mistakes = base or Hardware(), list[Mistake]()
    tree = read_file(file, str(file), mistakes)
    settings = None if tree is None or mistakes else _validated(tree, mistakes)
    if tree is None or settings is None:
        raise error(mistakes, str(file))
    links = dict(base.links) | {name.lower(): _link(name, each) for name, each in settings.links.items()}
    devices = dict(base.devices)
    for name, each in settings.devices.items():
        where = location_of(tree, ("devices", name))
        mistakes += [Mistake(where, what) for what in _unknown(name, each, devices, links)]
        if not mistakes:
            devices[name.lower()] = _device(name, each, devices[each.like.lower()])
    if mistakes:
        raise error(mistakes, str(file))
    return Hardware(devices, links)


def _validated(tree: Node, mistakes: list[Mistake]) -> HardwareSettings | None:
    try:
        return HardwareSettings.model_validate(tree.plain())
    except ValidationError as faults:
        for fault in faults.errors(include_url=False):
            path = fault["loc"]
            mistakes.append(Mistake(location_of(tree, path), f"{dotted(path)}: {fault['msg']}"))
    return None


def _unknown(
    name: str, settings: DeviceSettings, devices: Mapping[str, Device], links: Mapping[str, Link]
) -> list[str]:
    """What a device names that is not in the tables; those of the file count from its line on."""
    wrong = []
    if settings.like.lower() not in devices:
        wrong.append(f"devices.{name}.like: {settings.like!r:.60} is not one of {', '.join(devices)}")
    for key in ("inside", "between"):
        link = getattr(settings, key)
        if link is not None and link.lower() not in links:
            wrong.append(f"devices.{name}.{key}: {link!r:.60} is not one of {', '.join(links)}")
    return wrong


def _link(name: str, settings: LinkSettings) -> Link:
    bandwidth = settings.gbit_per_second * 1e9 / 8
    return Link(
        name.lower(), bandwidth, settings.share, settings.latency_us * 1e-6, settings.source, settings.ports
    )


def _device(name: str, settings: DeviceSettings, like: Device) -> Device:
    rates = {"bf16": settings.bf16_tflops, "fp8": settings.fp8_tflops, "fp32": settings.fp32_tflops}
    flops = {**like.flops, **{kind: rate * 1e12 for kind, rate in rates.items() if rate is not None}}
    numbers = {
        "memory": settings.memory_gib and settings.memory_gib * 2**30,
        "bandwidth": settings.bandwidth_gb_per_second and settings.bandwidth_gb_per_second * 1e9,
        "watts": settings.watts, "units": settings.units,
        "inside": settings.inside and settings.inside.lower(),
        "between": settings.between and settings.between.lower(),
        "per_node": settings.per_node, "joined": settings.joined,
    }  # fmt: skip
    shares = {"products": settings.products_share, "memory": settings.memory_share}
    given = {key: share for key, share in shares.items() if share is not None}
    reached = replace(like.reached, **given, source=settings.source) if given else like.reached
    return replace(
        like, name=name.lower(), flops=flops, reached=reached,
        source=f"{settings.source}; the rest as {like.name}: {like.source}",
        **{key: value for key, value in numbers.items() if value is not None},  # type: ignore[arg-type]
    )  # fmt: skip
