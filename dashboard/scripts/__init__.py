"""JavaScript that runs in the viewer's page, each file with the Python module that mounts it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st


@st.cache_resource
def script(name: str) -> str:
    """The text of a script beside this file."""
    return (Path(__file__).parent / f"{name}.js").read_text()
