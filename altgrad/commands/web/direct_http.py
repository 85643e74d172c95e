"""HTTP requests that follow no redirect: a redirect could send a token or a message to another server."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets every redirect raise HTTPError."""

    def redirect_request(self, *redirect: Any) -> None:
        return None


def open_directly(request: urllib.request.Request, seconds: float) -> Any:
    """The response to a request, as `urllib.request.urlopen`; a redirect raises HTTPError like any other error."""
    return urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds)


def why_not(error: Exception) -> str:
    """The reason for a failed request in a few words, without any part of its address."""
    if isinstance(error, urllib.error.HTTPError):
        redirect = ", a redirect, which is not followed" if 300 <= error.code < 400 else ""
        return f"answered {error.code}{redirect}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return type(error.reason).__name__
    return type(error).__name__
