"""Where the frames of a zstd file lie, without unpacking it (RFC 8878, section 3.1)."""

from __future__ import annotations

from llmkit.data.sources.remote import RandomFile
from llmkit.errors import UserError

_FRAME, _SKIPPABLE = 0xFD2FB528, 0x184D2A50
_RAW, _RUN, _COMPRESSED = 0, 1, 2


def frame_ends(file: RandomFile) -> list[int]:
    """The byte behind each frame; skippable frames, which hold no data, belong to the one after them.

    Raises UserError where the file is damaged or cut short.
    """
    size = file.file.size
    ends: list[int] = []
    place = 0
    while place < size:
        magic = _number(file, place, 4)
        if magic & ~0xF == _SKIPPABLE:
            place += 8 + _number(file, place + 4, 4)
            continue
        if magic != _FRAME:
            raise UserError(f"{file.name}: is damaged: at byte {place} there is no zstd frame")
        place = _frame_end(file, place)
        ends.append(place)
    if place > size:
        raise UserError(f"{file.name}: is damaged: it ends within a zstd frame; fetch it again")
    return [*ends[:-1], size] if ends else []


def _frame_end(file: RandomFile, place: int) -> int:
    descriptor = _number(file, place + 4, 1)
    single_segment, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    place += 5 + (not single_segment) + dictionary_bytes + size_bytes
    is_last = False
    while not is_last:
        header = _number(file, place, 3)
        is_last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        if kind not in (_RAW, _RUN, _COMPRESSED):
            raise UserError(f"{file.name}: is damaged: at byte {place} there is no zstd block")
        place += 3 + (1 if kind == _RUN else length)
    return place + 4 * has_checksum


def _number(file: RandomFile, place: int, count: int) -> int:
    content = file.read_at(place, count)
    if len(content) < count:
        raise UserError(f"{file.name}: is damaged: it ends within a zstd frame; fetch it again")
    return int.from_bytes(content, "little")
