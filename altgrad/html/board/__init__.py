"""Boards: tables that can be read at a glance, a row per group of seeds or per run, in the static report and on pages.

All rows of a task share one scale of gaps and one of losses, so that lengths and heights compare.
"""

from altgrad.html.board.cells import BOARD_STYLE, text_board
from altgrad.html.board.groups import group_board
from altgrad.html.board.runs import BoardRun, run_board

__all__ = ["BOARD_STYLE", "BoardRun", "group_board", "run_board", "text_board"]
