"""The card on top of a collapsed run: what happened, what to try, the evidence of this sweep, the command to copy."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from altgrad.compare import Row
from altgrad.report.advising.advice import advise
from altgrad.report.advising.sweep_evidence import happened, survivor_sentence, survivors_like, sweep_command
from altgrad.report.evidence import Evidence
from altgrad.text.foreign_text import as_markdown

_SHOWN = 3


def verdict_card(evidence: Evidence, row: Row, rows: Sequence[Row]) -> None:
    """The card of a collapsed run; `rows`: all rows of the comparison."""
    with st.container(border=True):
        st.error(as_markdown(f"{happened(row)} The rule: {evidence.verdict.sentence()}."))
        survivors = survivors_like(row, rows)[:_SHOWN]
        if survivors:
            lines = "\n".join(f"- {as_markdown(survivor_sentence(other, differs))}" for other, differs in survivors)
            st.markdown(f"**In this sweep**, from the same weights and batches:\n{lines}")
        advice = advise(evidence)[:_SHOWN]
        if advice:
            st.markdown("**What to try**\n" + "\n".join(f"{place}. {one}" for place, one in enumerate(advice, start=1)))
            st.caption("The first of these as a command:")
            st.code(sweep_command(evidence.config, advice[0].changes), language="bash", wrap_lines=True)
        elif not survivors:
            st.markdown("Nothing that was measured points to a cause that a config change would remove.")
