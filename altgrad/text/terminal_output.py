"""Output that only shows: text of others made harmless, and a stream that can neither stop nor hold up the program.

A run name, an error text or a library's message may hold escape sequences that clear the screen, or `[/x]`, which
rich takes for markup.  A reader may have gone (`| head`), may not read (`| less`), or may not know a character
(`PYTHONIOENCODING=ascii`).  None of that is a reason to end what trains.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.text import Text

_STEERS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, bidirectional marks, half characters, odd line ends
_WAITING = 1_000_000  # characters that wait for a reader; beyond that the newest are left out


def harmless(text: object) -> str:
    """The text with everything that steers a terminal written out: ESC as `\\x1b`.  Line ends and tabs stay."""
    return "".join(_written_out(character) for character in str(text))


def one_line(text: object) -> str:
    """The text as `harmless` has it, on one line."""
    return harmless(" ".join(str(text).split()))


def cell(text: object) -> Text:
    """A text of others for rich: one line, never markup, never an emoji code."""
    return Text(one_line(text))


def say(console: Console, text: object) -> None:
    """Print lines as they are: harmless, unwrapped, without markup."""
    console.print(Text(harmless(text)), soft_wrap=True, highlight=False)


def _written_out(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _STEERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


class Outlet(io.TextIOBase):
    """A text stream that never waits and never raises: a thread of its own writes to the real one.

    `on_loss`, called once and maybe from that thread, is told why nothing is written any more.  `stream` None: there
    is no output at all (`>&-`).
    """

    def __init__(self, stream: TextIO | None, on_loss: Callable[[str], None] | None = None) -> None:
        self._stream, self._on_loss = stream, on_loss
        self._texts: deque[str] = deque()
        self._size = 0
        self._left_out = 0
        self._changed = threading.Condition()
        self._busy = False
        self._gone = stream is None
        self._thread: threading.Thread | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if self._stream is None else self._stream.encoding or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "replace"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("no output")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        with self._changed:
            if self._gone:
                return len(text)
            if self._size > _WAITING:
                self._left_out += len(text)
                return len(text)
            self._texts.append(text)
            self._size += len(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing: whoever must know that all is written calls `drain`."""

    def drain(self, seconds: float | None = None) -> None:
        """Wait until everything is written, not longer than some seconds; for ever at the end of a program."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or not (self._texts or self._busy), seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._texts)
                text = "".join(self._texts)
                if self._left_out:
                    text += f"\n[{self._left_out} characters left out: nobody was reading]\n"
                self._texts.clear()
                self._size = self._left_out = 0
                self._busy = True
            try:
                self._put(text)
            except Exception as error:  # whatever a broken stream raises
                self._lose(type(error).__name__)
                return

    def _put(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(text)
        except UnicodeError:
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        self._stream.flush()

    def _lose(self, reason: str) -> None:
        _point_at_nothing(self._stream)
        with self._changed:
            self._gone = True
            self._texts.clear()
            self._busy = False
            self._changed.notify_all()
        if self._on_loss is not None:
            self._on_loss(reason)


@contextmanager
def unstoppable_output(on_loss: Callable[[str], None] | None = None) -> Iterator[None]:
    """For its length `sys.stdout` and `sys.stderr` are outlets, so that no print of anybody can end the program."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    outlets = [Outlet(stream, on_loss) for stream in before]
    if sys.stdout is None and on_loss is not None:
        on_loss("it is closed")
    sys.stdout, sys.stderr = outlets
    try:
        yield
    finally:
        for outlet in outlets:
            outlet.drain()
        sys.stdout, sys.stderr = before


def _open_standard_files() -> None:
    """Give a closed standard file to /dev/null, or the next file that anybody opens becomes it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _point_at_nothing(stream: TextIO | None) -> None:
    """Let the interpreter's last flush of a broken stream succeed; it would change the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
