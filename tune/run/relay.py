"""The actor between a trial's first rank and its function.  Apart, because its process then needs no torch."""

from __future__ import annotations

import asyncio
from typing import Any

ReportedResult = dict[str, Any]


class Relay:
    """Takes a report of the first rank, gives it to the trial's function, and lets the rank go on when that says so."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[ReportedResult] = asyncio.Queue()
        self._answers: asyncio.Queue[None] = asyncio.Queue()

    async def report(self, result: ReportedResult) -> None:
        """Returns when the report was answered."""
        await self._reports.put(result)
        await self._answers.get()

    async def next(self, seconds: float) -> ReportedResult | None:
        """The next report, None where there is none within some seconds."""
        try:
            return await asyncio.wait_for(self._reports.get(), seconds)
        except TimeoutError:
            return None

    async def answer(self) -> None:
        await self._answers.put(None)
