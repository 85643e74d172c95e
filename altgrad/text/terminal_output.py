"""Terminal output: foreign text made harmless, and a stream that can neither end nor delay the program.

A run name, an error text or a library's message may contain escape sequences that clear the screen, or `[/x]`, which
rich takes for markup.  The reader of a pipe may have exited (`| head`), may not read for now (`| less`), or its
encoding may lack a character (`PYTHONIOENCODING=ascii`).  None of these may end a training process.
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

# Unicode categories that change how a terminal shows other text: controls, bidirectional marks, lone surrogates,
# line and paragraph separators
_STEERS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_WAITING = 1_000_000  # characters that are buffered for a slow reader; newer ones are dropped


def harmless(text: object) -> str:
    """The text with control characters written as escapes: ESC becomes `\\x1b`.  Line ends and tabs stay."""
    return "".join(_written_out(character) for character in str(text))


def one_line(text: object) -> str:
    """The text on one line, with control characters written as escapes."""
    return harmless(" ".join(str(text).split()))


def cell(text: object) -> Text:
    """Foreign text as a rich `Text` of one line, in which rich finds neither markup nor emoji codes."""
    return Text(one_line(text))


def say(console: Console, text: object) -> None:
    """Print lines without wrapping and markup, with control characters written as escapes."""
    console.print(Text(harmless(text)), soft_wrap=True, highlight=False)


def tell(console: Console, sentence: object) -> None:
    """As `say`, but on a terminal a sentence wraps between words; a command to copy must not have line breaks."""
    console.print(Text(harmless(sentence)), soft_wrap=not console.is_terminal, highlight=False)


def _written_out(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _STEERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


class Outlet(io.TextIOBase):
    """A text stream whose `write` never blocks and never raises: a separate thread writes to the real stream.

    When the real stream fails, `on_loss` is called once with the reason, possibly from that thread; later text is
    dropped.  `stream` is None if the process has no such output (`>&-`).
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
        """Does nothing; call `drain` to wait until everything is written."""

    def drain(self, seconds: float | None = None) -> None:
        """Wait until everything is written, for at most `seconds`; None waits without limit, as at a program's end."""
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
                    text += f"\n[{self._left_out} characters left out: the output was not read in time]\n"
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
    """Within this context `sys.stdout` and `sys.stderr` are `Outlet`s, so that no `print` can end the program."""
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
    """Open /dev/null as each closed standard file; otherwise the next opened file would get its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _point_at_nothing(stream: TextIO | None) -> None:
    """Redirect a broken stream to /dev/null: Python flushes it at exit, and a failure would change the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
