"""The checks of a machine, and the process that runs them for `supervise`.

Each is a function of a Scope, and imports what it needs only when it runs: what hangs or dies is then a check
that has a name. Those that take little time, and those that must not be missing, come first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import IO

from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope

Check = Callable[[Scope], Iterator[Finding]]


def _machine(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.machine import machine_findings

    return machine_findings()


def _network(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.network import network_findings

    return network_findings(scope.first, os.environ)


def _disk(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.disk import disk_findings

    return disk_findings(scope)


def _versions(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.software import software_findings

    return software_findings(scope, os.environ)


def _devices(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.devices import device_findings

    return device_findings(scope)


def _speed(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.speed import speed_findings

    return speed_findings(scope)


def _collectives(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.collectives import local_findings

    return local_findings(scope)


def _shared_folder(scope: Scope) -> Iterator[Finding]:
    from llmkit.doctor.disk import seen_finding

    yield seen_finding(scope)


CHECKS: Mapping[str, Check] = {
    "machine": _machine,
    "network": _network,
    "disk": _disk,
    "versions": _versions,
    "shared folder": _shared_folder,
    "devices": _devices,
    "speed": _speed,
    "collectives": _collectives,
}


def run_here(names: list[str], scope: Scope, out: IO[str]) -> None:
    """Runs some of CHECKS, and writes what they find as they find it, a line of JSON each."""
    for name in names:
        _write(out, "begin", name)
        try:
            for finding in CHECKS[name](scope):
                _write(out, "finding", asdict(finding))
        except Exception as error:  # a check that cannot look is no proof that anything is wrong
            value = f"could not be checked: {type(error).__name__}: {error}"
            _write(out, "finding", asdict(Finding(name, "warn", value, "report this with the whole output")))


def _write(out: IO[str], kind: str, content: object) -> None:
    print(json.dumps([kind, content]), file=out, flush=True)


def main() -> None:
    """Takes a Scope from standard input; the names of the checks are its arguments."""
    scope = Scope(**json.load(sys.stdin))
    # What libraries print must not get among the findings, and what is started must not hold the pipe.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        run_here(sys.argv[1:], scope, out)


if __name__ == "__main__":
    main()
