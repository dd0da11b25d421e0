"""The candidates of a lane in windows: unit after unit, epoch after epoch, from files or from kept tokens."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from llmkit.data.live.kept_tokens import DamagedError, Item, KeptUnit, UnitKeeper
from llmkit.data.live.row import Cursor
from llmkit.data.live.source import LiveSource
from llmkit.data.sources.records import Chat, Ids, LeftOut, Pair, Record, Text
from llmkit.errors import RunFault, UserError

WINDOW_CHARACTERS = 2 << 20
"""A window ends, however few candidates it has, with the one that reaches this size: it lies in memory."""


@dataclass
class Window:
    """Candidates that are shuffled among each other, in their shuffled order; their unit, and where it is.

    epoch, place, first, hint: as in `Cursor`.
    """

    epoch: int
    place: int
    first: int
    hint: int
    unit: int
    items: list[Item]


class Windows:
    """The windows of a lane from `start` on; endless, unless the source has a limit of epochs (`max_epochs`).

    usable: to be set by who finds a document in this epoch. notes: what the user should know, to be emptied
    by who tells.
    """

    def __init__(self, source: LiveSource, lane: int, start: Cursor) -> None:
        self.usable = start != Cursor()
        self.notes: list[str] = []
        self._source, self._lane, self._start = source, lane, start
        self._where = f"lane {lane} of {source.lanes}"
        self._epoch, self._place = start.epoch, start.place
        self._own = len(source.lane_units[lane])
        self._order = source.unit_order(lane, start.epoch, start.place)
        self._folder = source.cache_folder
        self._items: Generator[Item] | None = None
        self._next = 0  # number of the candidate after the last one taken
        self._kept: KeptUnit | None = None
        self._keeper: UnitKeeper | None = None

    def next(self) -> Window | None:
        """The next window, never empty; None, for good, where the lane was read as often as it may be.

        Raises UserError where there is no document to train on; what reading raises names the source, too.
        """
        try:
            if self._items is None:
                if not self._order:
                    self._end_epoch()
                if self._is_at_end:
                    return None
                self._open(self._start.first, self._start.hint, whole=self._start == Cursor())
            while not (items := self._take()):
                self._end_unit()
                if self._is_at_end:
                    return None
                self._open()
        except (UserError, RunFault) as error:
            text, name = str(error), f"source {self._source.name}"
            raise type(error)(text if text.startswith(name) else f"{name}: {text}") from error
        if self._keeper is not None:
            self._keeper.begin_window(items)
        unit, first = self._order[self._place], items[0].number
        order = self._source.window_order(len(items), self._lane, self._epoch, unit, first)
        shuffled = [items[place] for place in order]
        return Window(self._epoch, self._place, first, items[0].hint, unit, shuffled)

    @property
    def unit(self) -> int:
        """The unit at hand."""
        return self._order[min(self._place, len(self._order) - 1)]

    def keep(self, item: Item) -> None:
        """Tell what became of an item of the last window, for the next epoch: it has its tokens by now."""
        if self._keeper is not None:
            self._keeper.add(item)

    def close(self) -> None:
        """Close the files; what was kept of a unit that is not read to its end is dropped."""
        if self._keeper is not None:
            self._keeper.abandon()
            self._keeper = None
        self._shut()

    def _take(self) -> list[Item]:
        try:
            items = self._cut_window()
        except DamagedError as error:
            assert self._kept is not None
            self._ignore(error)
            hint = self._kept.hint(self._next)
            self._shut()
            self._items = self._read(self._next, hint)
            items = self._cut_window()
        if items:
            self._next = items[-1].number + 1
        return items

    def _cut_window(self) -> list[Item]:
        items: list[Item] = []
        size = 0
        for item in self._items or ():
            items.append(item)
            size += item.size
            if len(items) == self._source.window or size >= WINDOW_CHARACTERS:
                break
        return items

    def _end_unit(self) -> None:
        if self._keeper is not None:
            error = self._keeper.finish()
            self._keeper = None
            if error is not None:  # training does not depend on it
                self._note(f"tokens are not kept: {self._folder} cannot be written ({error.strerror})")
                self._folder = None
        self._shut()
        self._place += 1
        if self._place >= len(self._order):
            self._end_epoch()

    def _end_epoch(self) -> None:
        source = self._source
        if not self.usable:
            self._borrow()
            return
        # A lane without documents of its own begins behind its own units each time.
        self._place = 0 if len(self._order) == self._own else self._own
        self._epoch, self.usable = self._epoch + 1, False
        self._order = source.unit_order(self._lane, self._epoch, self._place)

    def _borrow(self) -> None:
        """There is no document in this lane: from here on it reads the whole source, in an order of its own.

        So its rows are of all documents alike. Where each document may be read so often only, the lane is at
        its end instead. Raises UserError where the whole source has none.
        """
        source = self._source
        files = sorted({source.file_of(unit) for unit in self._order})
        listed = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        nothing = f"{self._where} has no document to train on ({listed or 'empty files'})"
        if len(self._order) > self._own or source.lanes == 1:
            raise UserError(f"{nothing}; give the source other files")
        if source.max_epochs is not None:
            self._note(nothing)
            self._epoch = source.max_epochs
            return
        self._note(f"{nothing}: it reads the whole source instead")
        self._order = source.unit_order(self._lane, self._epoch, self._own)

    @property
    def _is_at_end(self) -> bool:
        most = self._source.max_epochs
        return most is not None and self._epoch >= most

    def _open(self, first: int = 0, hint: int = 0, whole: bool = True) -> None:
        """Begin the unit at hand, at a candidate; `whole`: every candidate of it will be passed on."""
        unit = self._order[self._place]
        self._next = first
        if self._folder is not None:
            try:
                self._kept = KeptUnit.open(self._folder, unit)
            except DamagedError as error:
                self._ignore(error)
            if self._kept is not None:
                self._items = self._kept.read(first)
                return
            if whole:
                self._keeper = UnitKeeper(self._folder, unit)
        self._items = self._read(first, hint)

    def _read(self, first: int, hint: int) -> Generator[Item]:
        unit = self._order[self._place]
        heldout = self._source.heldout_of(unit)
        for number, back, record, mended in self._source.reader.read(unit, first, hint):
            yield Item(number, back, _size(record), None if number in heldout else record, mended)

    def _shut(self) -> None:
        if self._items is not None:
            self._items.close()
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _ignore(self, error: DamagedError) -> None:
        self._note(f"{error}; these documents are tokenized again")

    def _note(self, text: str) -> None:
        self.notes.append(f"source {self._source.name}: {text}")


def _size(record: Record | LeftOut) -> int:
    """About how many characters a record has."""
    if isinstance(record, Chat):
        return sum(len(message["content"]) for message in record.messages)
    if isinstance(record, Pair):
        return len(record.prompt) + len(record.completion)
    if isinstance(record, Ids):
        return 4 * int(record.ids.size)
    return len(record.text) if isinstance(record, Text) else 0
