"""A folder on a local disk, NFS or an object store, through pyarrow's filesystems: one spelling for all.

Writes are whole-file and atomic: a reader sees a file complete or not at all.  Credentials come from the environment
(`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), never from a location: locations are
printed and stored.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from altgrad.outage import PATIENCE, Outage

T = TypeVar("T")
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_GCS_OPTIONS = ("anonymous", "endpoint_override", "scheme")
# An address that does not answer is known after 2 x 5 s.  Longer outages are the business of `Folder.patient`.
_CONNECT_SECONDS, _REQUEST_SECONDS, _TRIES = 5.0, 30.0, 2
_GCS_RETRIES = timedelta(seconds=3)
_NOT_AN_OUTAGE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Folder:
    """A folder and its filesystem.  `Folder.at("results")`, `Folder.at("s3://bucket/prefix")`.

    `query`: options of its URI.  `patience`: seconds for which an operation that storage refuses is tried again.
    """

    filesystem: pafs.FileSystem
    path: str
    query: str = ""
    patience: float = 0.0

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> Folder:
        """The folder at a local path or a URI (`s3://`, `gs://`, `file://`).  It need not exist.

        Another server than AWS: `s3://bucket/prefix?endpoint_override=HOST:PORT&scheme=http`, or AWS_ENDPOINT_URL.
        `gs://` takes these two options also, and `anonymous=true` for a bucket that is open to all.
        Raises ValueError for a URI with credentials or unknown options.
        """
        text = os.fspath(location)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        check_location(text)
        uri = urlsplit(text)
        if uri.scheme == "s3":
            return cls(_s3(uri), f"{uri.netloc}{uri.path}".rstrip("/"), uri.query)
        if uri.scheme in ("gs", "gcs"):
            return cls(_gcs(uri), f"{uri.netloc}{uri.path}".rstrip("/"), uri.query)
        filesystem, path = pafs.FileSystem.from_uri(text)
        return cls(filesystem, path.rstrip("/"), uri.query)

    def patient(self, seconds: float = PATIENCE) -> Folder:
        """The same folder, whose operations outlast that many seconds of refusal.  0: none, for the first contact."""
        return replace(self, patience=seconds)

    def __truediv__(self, name: str) -> Folder:
        return replace(self, path=f"{self.path}/{name}")

    def __str__(self) -> str:
        """The location, from which `at` makes the same folder."""
        scheme = self.filesystem.type_name
        if scheme == "local":
            return self.path
        return f"{'gs' if scheme == 'gcs' else scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Folder:
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def list(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """What is in the folder, sorted by path; empty where the folder does not exist."""
        hides_folders = not recursive and self.filesystem.type_name == "gcs"
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive or hides_folders)
        found = self._insist(lambda: self.filesystem.get_file_info(selector))
        if hides_folders:
            found = _direct_children(self.path, found)
        return sorted(found, key=lambda info: info.path)

    def has(self, name: str) -> bool:
        return self._insist(lambda: self.filesystem.get_file_info(f"{self.path}/{name}")).type == pafs.FileType.File

    def read_bytes(self, name: str) -> bytes:
        """Content of a file in the folder.  Raises FileNotFoundError."""

        def read() -> bytes:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
                return bytes(file.read())

        return self._insist(read)

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file whole: complete or absent, also when the process dies.  Creates the folder."""
        self._insist(lambda: self._write(f"{self.path}/{name}", content))

    def delete(self, name: str) -> None:
        """Delete a file in the folder.  Raises FileNotFoundError."""
        self._insist(lambda: self.filesystem.delete_file(f"{self.path}/{name}"))

    def _insist(self, action: Callable[[], T]) -> T:
        """Do it, trying again for `patience` seconds where storage refuses."""
        if not self.patience:
            return action()
        outage = Outage(self, self.patience)
        while True:
            try:
                return action()
            except _NOT_AN_OUTAGE:
                raise
            except OSError as error:
                outage.refused(error)
            outage.wait()

    def _write(self, target: str, content: bytes | pa.Buffer) -> None:
        if not self.is_local:  # object stores need no folder, and an object appears when its upload is complete
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex[:8]}"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object.  Raises FileNotFoundError, or ValueError naming the file where it is not one."""
        try:
            content = json.loads(self.read_bytes(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self / name}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{self / name}: expected a JSON object, found {type(content).__name__}")
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object; NaN and inf, which JSON lacks, become the strings "NaN", "Infinity", "-Infinity"."""
        text = json.dumps(_strict(content), indent=2, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())


def check_location(location: str) -> None:
    """Raises ValueError for a location with credentials in it, without repeating them."""
    scheme, separator, rest = location.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        raise ValueError(f"{scheme}://...: credentials in a location; give them in the environment")


def _s3(uri: SplitResult) -> pafs.S3FileSystem:
    """The store of an `s3://` URI; its region from the URI, the environment or, for AWS, the bucket itself."""
    options = _options(uri, _S3_OPTIONS)
    elsewhere = "endpoint_override" in options or {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & os.environ.keys()
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if elsewhere else pafs.resolve_s3_region(uri.netloc)
    return pafs.S3FileSystem(
        region=region,
        endpoint_override=options.get("endpoint_override"),
        scheme=options.get("scheme", "https"),
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_REQUEST_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        allow_delayed_open=True,  # a small file is one request, not three
    )


def _gcs(uri: SplitResult) -> pafs.GcsFileSystem:
    """The store of a `gs://` URI."""
    options = _options(uri, _GCS_OPTIONS)
    return pafs.GcsFileSystem(
        anonymous=options.get("anonymous") == "true",
        endpoint_override=options.get("endpoint_override"),
        scheme=options.get("scheme", "https"),
        retry_time_limit=_GCS_RETRIES,
    )


def _options(uri: SplitResult, known: Sequence[str]) -> dict[str, str]:
    """The options of a URI.  Raises ValueError for one that its store does not know."""
    options = dict(parse_qsl(uri.query))
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"{uri.scheme}://{uri.netloc}: unknown option {', '.join(unknown)}; known: {', '.join(known)}")
    return options


def _direct_children(path: str, found: Sequence[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """What lies directly in a folder, from everything below it.

    Google's store has no folders, and pyarrow lists as one only what an empty object marks; a path implies it here.
    """
    children: dict[str, pafs.FileInfo] = {}
    for info in found:
        name, slash, _ = info.path[len(path) + 1 :].partition("/")
        children[name] = pafs.FileInfo(f"{path}/{name}", pafs.FileType.Directory) if slash else info
    return list(children.values())


def _strict(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
