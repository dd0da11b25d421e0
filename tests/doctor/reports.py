"""Reports as nodes give them, for tests of what is made of them."""

from __future__ import annotations

from llmkit.doctor.findings import Compared, Finding, Report, State

GPU = "NVIDIA H100 80GB HBM3"


def finding(name: str, value: str = "fine", state: State = "ok", compared: Compared = "") -> Finding:
    return Finding(name, state, value, "mend it" if state != "ok" else "", compared)


def speeds(name: str, **rates: float) -> Finding:
    """Of devices; gpu0, gpu1, ... are GPUs."""
    numbers = {key.replace("gpu", f"{GPU} #"): rate for key, rate in rates.items()}
    return Finding(name, "ok", "as fast as it is", "", "speed", numbers)


def seen(*nodes: str) -> Finding:
    return Finding("shared folder", "ok", "/runs/mine", "", "seen", dict.fromkeys(nodes, 1.0))


def nodes(**findings: list[Finding]) -> list[Report]:
    return [Report(name, tuple(found)) for name, found in findings.items()]
