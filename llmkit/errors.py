"""Errors whose cause is the user's input; everything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


class UserError(Exception):
    """A mistake the user can mend: the message names the place and the remedy.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """


class RunFault(Exception):
    """A run that cannot go on through no mistake in its configuration (a full disk, a diverged loss).

    The command line prints the message alone, without a traceback, and exits with code 1.
    hosts: nodes that may be the cause.
    """

    def __init__(self, message: str = "", hosts: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.hosts = tuple(hosts)


def raise_together(errors: Iterable[UserError | RunFault]) -> None:
    """Raises one error that tells of all `errors`, each on a line; nothing, if there are none."""
    found = list(errors)
    if len(found) == 1:
        raise found[0]
    if found:
        kind = UserError if any(isinstance(error, UserError) for error in found) else RunFault
        raise kind(f"{len(found)} mistakes" + "".join(f"\n  {error}" for error in found))


def to_report(error: BaseException) -> dict[str, str]:
    """An error as other processes get it: `kind`, its type or UserError or RunFault above that; `message`."""
    base = next((base for base in (UserError, RunFault) if isinstance(error, base)), type(error))
    return {"kind": base.__name__, "message": str(error)}


def from_report(
    report: Mapping[str, str], where: str = "", hosts: Sequence[str] = ()
) -> UserError | RunFault:
    """The error that stands here for that of other processes, which `where` names; "" = of all."""
    message, kind = report["message"], UserError if report["kind"] == UserError.__name__ else RunFault
    if report["kind"] not in (UserError.__name__, RunFault.__name__):
        message = f"{report['kind']}: {message} (that rank's output has the traceback)"
    text = f"{where}: {message}" if where else message
    return kind(text) if kind is UserError else RunFault(text, hosts)


class AlreadyReported(Exception):
    """The end of one of many processes after an error that rank 0 has printed for all.

    The command line prints nothing and exits with `code`.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class EndedError(RunFault):
    """This process hangs, or others wait for it in vain: its watchdog ends it, and has printed why."""


class SourceDryError(RunFault):
    """A source has no row left for the next step: it was read as often as its settings allow."""


class DisagreementError(RunFault):
    """Processes of a run that should know the same do not: what they trained on may differ."""
