"""Which rank keeps a run from going on, from what is known of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmkit.watchdog.limits import DISK
from llmkit.watchdog.stacks import DEVICE

SHOWN = 8
"""Ranks that a message names at most."""


class Known(NamedTuple):
    """What is known of a rank.

    host, pid: where it runs. phase, step: what it does. overdue: whether its phase lasts longer than it may.
    stuck: whether it has given no sign of life for as long as a step may take, whatever the phase.
    stopped: whether it has been stopped by a signal for too long. paused: whether it was stopped so a moment
    ago. age: seconds without a sign of life.
    place: the innermost call of its main thread; exchange: the exchange with others that it waits in, "" =
    none, None = no stack was got. excused: why its rest is no fault (a compiler, a debugger), or "".
    silent: seconds without word from its watching process. left: it has ended, with word. lost: its watching
    process has gone without a word.
    """

    rank: int
    host: str = ""
    pid: int = 0
    phase: str = ""
    step: int = 0
    overdue: bool = False
    stuck: bool = False
    stopped: bool = False
    paused: bool = False
    age: float = 0.0
    place: str = ""
    exchange: str | None = None
    excused: str = ""
    silent: float = 0.0
    left: bool = False
    lost: bool = False


class Verdict(NamedTuple):
    """What is wrong. event: as in events.jsonl. ranks: those that it is put down to. text: one sentence.

    gone: whether these cannot be ended, or have ended, so that the others may never notice.
    """

    event: str
    ranks: tuple[int, ...]
    text: str
    seconds: float = 0.0
    gone: bool = False


def verdict_of(message: Mapping[str, Any]) -> Verdict:
    """The verdict that was sent with the fields of one."""
    fields = {name: message[name] for name in Verdict._fields}
    return Verdict(**{**fields, "ranks": tuple(fields["ranks"])})


def hosts_of(verdict: Verdict, ranks: Sequence[Known]) -> list[str]:
    """Hosts that may be the cause: of ranks that died, hang or are cut off; where data are late, none."""
    if verdict.event == "stalled":
        return []
    return list(dict.fromkeys(each.host for each in ranks if each.rank in verdict.ranks))


def named(known: Known) -> str:
    """As in "rank 3 (n2, process 4711)"."""
    return f"rank {known.rank} ({known.host}{f', process {known.pid}' if known.pid else ''})"


def dead(known: Known, cause: str) -> Verdict:
    """The verdict on a rank whose process has ended without a word. cause: a signal, an exit code, or ""."""
    how = f"was ended by {cause}" if cause.startswith(("SIG", "signal")) else "ended"
    if cause == "SIGKILL":
        how += " (by hand, by its launcher, or as the machine ran out of memory)"
    elif cause and "SIG" not in cause:
        how += f" with {cause}"
    where = f"in step {known.step + 1}" if known.phase == "step" else f"in the phase {known.phase}"
    return Verdict("dead_rank", (known.rank,), f"{named(known)} {how} {where}, without reporting an error")


def diagnose(ranks: Sequence[Known], silent_limit: float) -> Verdict | None:
    """What is wrong where a rank is overdue; None where all that is overdue waits for what may take long.

    silent_limit: seconds without word from a rank after which it counts as cut off.
    """
    if any(known.excused for known in ranks):
        return None
    if gone := [known for known in ranks if known.left or known.lost]:
        return _gone(gone, ranks, "has ended, and the others still wait for it")
    if cut_off := [known for known in ranks if known.silent > silent_limit]:
        text = f"was not heard for {cut_off[0].silent:.0f} s: its host, or the network to it, is down"
        return _gone(cut_off, ranks, text)
    if stopped := [known for known in ranks if known.stopped]:
        if all(known.stopped or known.paused for known in ranks):
            return None  # somebody stopped all of the job, or lets it go on: some reports are older
        return _verdict("hung_rank", stopped, ranks, "is stopped (SIGSTOP), and the others wait for it")
    hung = [known for known in ranks if known.overdue and _is_at_work(known)]
    if hung:
        event = "stalled" if all(known.phase == "data" for known in hung) else "hung_rank"
        return _verdict(event, hung, ranks, "hangs")
    if not all(known.stuck and known.exchange for known in ranks):
        return None
    return _mismatch(ranks) if len(ranks) > 1 else _verdict("hung_rank", ranks, ranks, "hangs")


def _is_at_work(known: Known) -> bool:
    """Whether it waits for no other. One whose stacks were not got may well: a machine that is out of memory,
    or has too much to do, answers late."""
    return known.exchange == "" or (known.exchange is None and known.age > DISK)


def _gone(suspects: Sequence[Known], ranks: Sequence[Known], what: str) -> Verdict:
    """The verdict on ranks of which nothing more is known."""
    others = [known for known in ranks if known not in suspects]
    text = f"{', '.join(named(known) for known in suspects[:SHOWN])} {what}{_places('; ', others)}"
    seconds = max(known.silent for known in suspects)
    return Verdict("hung_rank", tuple(known.rank for known in suspects), text, seconds, gone=True)


def _verdict(event: str, suspects: Sequence[Known], ranks: Sequence[Known], what: str) -> Verdict:
    first = suspects[0]
    text = f"{named(first)} {what}"
    if first.place:
        text += f" in {first.place}"
    text += f", since {first.age:.0f} s in the phase {first.phase} after step {first.step}"
    if len(suspects) > 1:
        text += f"; so do ranks {', '.join(str(known.rank) for known in suspects[1 : 1 + SHOWN])}"
    others = [known for known in ranks if known not in suspects]
    return Verdict(event, tuple(k.rank for k in suspects), text + _places("; ", others), first.age)


def _mismatch(ranks: Sequence[Known]) -> Verdict:
    """All wait for each other: in different exchanges, or for a message that was lost."""
    age, last = max(known.age for known in ranks), max(known.step for known in ranks)
    places = _by_place(ranks)
    if len(places) > 1:
        text = "the ranks wait for each other in different exchanges"
    else:
        text = "all ranks wait for each other in the same exchange: the network or a device is at fault"
    text += f", since {age:.0f} s" + _places(": ", ranks)
    return Verdict("hung_rank", tuple(known.rank for known in _odd(ranks, last, places)), text, age)


def _odd(ranks: Sequence[Known], last: int, places: Mapping[str, list[Known]]) -> Sequence[Known]:
    """Those of the waiting ranks that are not where the others are."""
    if behind := [known for known in ranks if known.step < last]:
        return behind
    by_device = [known for known in ranks if known.exchange == DEVICE]
    if 0 < len(by_device) < len(ranks):  # the others are known to wait for them
        return by_device
    fewest = min(places.values(), key=len)
    return fewest if len(fewest) * 2 < len(ranks) else []


def _by_place(ranks: Sequence[Known]) -> Mapping[str, list[Known]]:
    found: dict[str, list[Known]] = {}
    for known in ranks:
        found.setdefault(known.place, []).append(known)
    return found


def _places(before: str, ranks: Sequence[Known]) -> str:
    """As in "rank 1 waits in all_reduce (...), ranks 0, 2 in ..."."""
    parts = []
    for place, group in list(_by_place([known for known in ranks if known.place]).items())[:SHOWN]:
        one, waits = len(group) == 1, bool(group[0].exchange)
        who = ", ".join(str(known.rank) for known in group[:SHOWN]) + (", ..." if len(group) > SHOWN else "")
        verb = ("waits" if one else "wait") if waits else ("is" if one else "are")
        parts.append(f"rank{'' if one else 's'} {who} {verb} in {place}")
    return before + ", ".join(parts) if parts else ""
