"""What the replays of a collapsed run showed: a card on the page Failures, and a line on the page Run."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from altgrad.report.tested_cause import ARM_COLUMNS, arm_cells, explanation_of
from altgrad.text.foreign_text import as_code, as_command, as_markdown
from dashboard.data.watched_sweep import WatchedRun
from dashboard.widgets import show_table


def cause_card(run: WatchedRun) -> None:
    """The conclusion with a table of all replays, or the command that makes them."""
    st.subheader("Cause, tested")
    record = explanation_of(run)
    if record is None:
        st.caption(
            f"Not tested yet: {as_code(as_command(['altgrad', 'explain', str(run.folder)]))} replays the collapse."
        )
        return
    with st.container(border=True):
        _conclusion(record)
        for note in record["notes"]:
            st.caption(as_markdown(f"{note[:1].upper()}{note[1:]}."))
        frame = pd.DataFrame([arm_cells(arm) for arm in record["arms"]], columns=list(ARM_COLUMNS))
        show_table(frame, alt="Replays of the collapse: what was changed, whether it collapsed, losses.")


def cause_line(run: WatchedRun) -> None:
    """The conclusion alone; nothing for a run that was not explained."""
    record = explanation_of(run)
    if record is not None:
        _conclusion(record)


def _conclusion(record: dict[str, object]) -> None:
    found = record["conclusion"]
    assert isinstance(found, dict)
    unfinished = "" if record["finished"] else " (not finished)"
    st.markdown(f"**{as_markdown(found['sentence'])}** Confidence: {found['confidence']}{unfinished}.")
