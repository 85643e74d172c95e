"""A real S3 server on loopback (moto's), with a gate in front that can refuse all writes for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "planted-access-key", "AWS_SECRET_ACCESS_KEY": "planted-secret-key"}
ENVIRONMENT = KEYS | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "bucket"


@dataclass
class ObjectStore:
    """The server.  `refusing`: answers every write with 503; `refused` counts them."""

    port: int = 0
    refusing: bool = False
    refused: int = 0
    _backend: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))

    def uri(self, prefix: str) -> str:
        """Location of a folder in the bucket, as for `--results`."""
        return f"s3://{BUCKET}/{prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self.refusing and environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        return self._backend(environ, start_response)


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running server with an empty bucket; the caller sets `ENVIRONMENT`."""
    store = ObjectStore()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{store.port}",
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        server.shutdown()
        thread.join()
