"""A Google Cloud Storage server on loopback (gcp-storage-emulator), in a process of its own.

Of its own because pyarrow's client holds the interpreter's lock while it opens a file.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers.polling import wait_for
from tests.servers.ray_nodes import free_port

BUCKET = "bucket"


@contextmanager
def google_store() -> Iterator[str]:
    """A running server with an empty bucket; yields the options of a location in it."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, "--in-memory", "--quiet", "--default-bucket", BUCKET])
    try:
        wait_for(lambda: _answers(port) or process.poll() is not None)
        assert process.poll() is None, "the storage emulator does not start"
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http&anonymous=true"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
    except OSError:
        return False
    return True
