"""A command in a box, with a button that copies it: Streamlit's own icon shows only under a mouse."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard.scripts import script

_HTML = '<button type="button"></button>'
_CSS = """
button {
    font: inherit; color: var(--st-text-color); background: var(--st-background-color); cursor: pointer;
    border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius); padding: 0.3rem 0.9rem;
}
button:hover, button:focus-visible { border-color: var(--st-primary-color); color: var(--st-primary-color) }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px }
"""


def command_with_button(command: str, what: str) -> None:
    """Show a shell command under the words `what`, with a button that copies it."""
    st.caption(f"{what[:1].upper()}{what[1:]}:")
    st.code(command, language="bash", wrap_lines=True)
    _button()(key=f"copy {what}", data={"text": command, "label": "Copy the command"}, width="content")


def _button() -> Any:
    return st.components.v2.component("altgrad_copy_button", html=_HTML, css=_CSS, js=script("copy_button"))
