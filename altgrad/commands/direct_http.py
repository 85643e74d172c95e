"""HTTP to the address that was given and to no other: a redirect would carry a token or a message elsewhere."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes an HTTPError of every redirect."""

    def redirect_request(self, *redirect: Any) -> None:
        return None


def open_directly(request: urllib.request.Request, seconds: float) -> Any:
    """The answer to a request, as `urllib.request.urlopen`.  A redirect raises HTTPError like any other refusal."""
    return urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds)


def why_not(error: Exception) -> str:
    """A failed request in a few words that hold nothing of its address."""
    if isinstance(error, urllib.error.HTTPError):
        redirect = ", a redirect, which is not followed" if 300 <= error.code < 400 else ""
        return f"answered {error.code}{redirect}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return type(error.reason).__name__
    return type(error).__name__
