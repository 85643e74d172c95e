"""The Ray actor between a trial's first rank and its function, in a separate module so that it imports no torch."""

from __future__ import annotations

import asyncio
from typing import Any

ReportedResult = dict[str, Any]


class Relay:
    """Passes reports of the first rank to the trial's function; the rank waits until that has answered."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[ReportedResult] = asyncio.Queue()
        self._answers: asyncio.Queue[None] = asyncio.Queue()

    async def report(self, result: ReportedResult) -> None:
        """Pass on a report; return when it has been answered."""
        await self._reports.put(result)
        await self._answers.get()

    async def next(self, seconds: float) -> ReportedResult | None:
        """The next report; None if there is none within `seconds`."""
        try:
            return await asyncio.wait_for(self._reports.get(), seconds)
        except TimeoutError:
            return None

    async def answer(self) -> None:
        """Let the rank whose report was the last go on."""
        await self._answers.put(None)
