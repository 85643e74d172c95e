"""A sweep as one self-contained HTML page: overview, comparison, loss curves, rescues and failure reports."""

from altgrad.html.page import html_report, write_html_report

__all__ = ["html_report", "write_html_report"]
