"""The memory that a rank shares with its watching process."""

from __future__ import annotations

import os

from llmkit.watchdog.board import Board, Sight


def test_what_one_process_writes_another_one_reads():
    board = Board.create()
    other = Board(os.dup(board.descriptor))
    assert other.read() == Sight(first_step=0, saved_step=0)
    sight = Sight(3, 12, 15.0, 12.5, 1.25, 11, 3, 1, 2, -1)
    board.write(sight)
    assert other.read() == sight
    other.close()
    board.close()
