"""The dashboard's pages as streamlit runs them for a test, without a browser."""

from __future__ import annotations

import sys
from pathlib import Path

from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from dashboard import streamlit_app
from tests.servers.polling import PATIENCE

PAGES = ("overview", "sweep", "curves", "compare", "failures", "layers", "formats", "run")


def show(root: Path | str, page: str, *options: str, **query: str) -> AppTest:
    """The page as a browser would get it: the whole app, opened at that page's address; `options`: of its command."""
    app = AppTest.from_file(streamlit_app.__file__, default_timeout=PATIENCE)
    app._page_hash = calc_hash("" if page == "overview" else page)  # AppTest opens only pages that are files
    for key, value in query.items():
        app.query_params[key] = value
    arguments, sys.argv = sys.argv, [streamlit_app.__file__, str(root), *options]
    try:
        return app.run()
    finally:
        sys.argv = arguments


def words(app: AppTest) -> str:
    """All text on the page and in the sidebar."""
    kinds = ("title", "markdown", "caption", "info", "warning", "error", "metric")
    return "\n".join(str(element.value) for kind in kinds for element in app.get(kind))


def drawn(app: AppTest) -> str:
    """The HTML that the page draws itself, without styles."""
    return "\n".join(element.proto.body.partition("</style>")[2] for element in app.get("html"))
