"""A folder on a local disk, NFS or an object store, through pyarrow's filesystems: one spelling for all.

Writes are whole-file and atomic: a reader sees a file complete or not at all.  What must outlast a loss of power is
written durably (records, checkpoints); that waits for the disk, which many small parts need not.

Credentials come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), never
from a location: locations are printed and stored.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from altgrad.storage.patience import PATIENCE, Outage
from altgrad.text.error_hints import shown
from altgrad.text.path_text import check_path

T = TypeVar("T")
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_GCS_OPTIONS = ("anonymous", "endpoint_override", "scheme")
# An address that does not answer is known after 2 x 5 s.  Longer outages are the business of `Folder.patient`.
_CONNECT_SECONDS, _REQUEST_SECONDS, _TRIES = 5.0, 30.0, 2
_GCS_RETRIES = timedelta(seconds=3)
_LARGEST_JSON, _DEEPEST_JSON = 2**28, 50  # bytes: a plan of some 100 000 runs; levels: a record has six
_NOT_AN_OUTAGE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


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
        check_location(text)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
        uri = _parts(text)
        if uri.scheme == "s3":
            return cls(_s3(uri), f"{uri.netloc}{uri.path}".rstrip("/"), uri.query)
        if uri.scheme in ("gs", "gcs"):
            return cls(_gcs(uri), f"{uri.netloc}{uri.path}".rstrip("/"), uri.query)
        filesystem, path = pafs.FileSystem.from_uri(text.replace("#", "%23"))  # no fragment, but a character of a name
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

    def read_bytes(self, name: str, at_most: int | None = None) -> bytes:
        """Content of a file in the folder.  Raises FileNotFoundError; ValueError beyond `at_most` bytes."""

        def read() -> bytes:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
                if at_most is not None and file.size() > at_most:
                    raise ValueError(f"{self / name}: {file.size()} bytes; at most {at_most} are read")
                return bytes(file.read())

        return self._insist(read)

    def write_bytes(self, name: str, content: bytes | pa.Buffer, *, durable: bool = False) -> None:
        """Write a file whole: complete or absent, also when the process dies.  Creates the folder.

        `durable`: also when the machine loses power right afterwards (an object store's objects always are).
        """
        self._insist(lambda: self._write(f"{self.path}/{name}", content, durable))

    def make_durable(self, names: Iterable[str]) -> None:
        """Make files of the folder outlast a loss of power, whatever way they were written; those gone are no matter.

        Raises OSError.
        """
        if self.is_local:
            paths = [f"{self.path}/{name}" for name in names]
            self._insist(lambda: _sync_all(paths))

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

    def _write(self, target: str, content: bytes | pa.Buffer, durable: bool) -> None:
        if not self.is_local:  # object stores need no folder, and an object appears when its upload is complete
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        temporary = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex[:8]}"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, target)
            if durable:
                _sync_folder(os.path.dirname(target))
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object.  Raises FileNotFoundError, or ValueError naming the file where it is none, or a monster."""
        text = self.read_bytes(name, at_most=_LARGEST_JSON)
        if not text.strip():
            raise ValueError(f"{self / name}: empty; expected a JSON object")
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError(f"{self / name}: not JSON of ours: nested too deeply") from None
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
            raise ValueError(f"{self / name}: not JSON: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self / name}: expected a JSON object, found {type(content).__name__}")
        if _depth(content) > _DEEPEST_JSON:
            raise ValueError(f"{self / name}: not JSON of ours: nested too deeply")
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object, durably; NaN and inf, which JSON lacks, become "NaN", "Infinity" and "-Infinity"."""
        text = json.dumps(_strict(content), indent=2, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode(), durable=True)


def _sync_all(paths: Sequence[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            _sync(path)
    for folder in sorted({os.path.dirname(path) for path in paths}):
        _sync_folder(folder)


def _sync(path: str) -> None:
    """Have the disk hold what the file holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    """Have the disk hold the folder's names; a file system that cannot (some network ones) does it in its own time."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise


def check_location(location: str) -> None:
    """Raises ValueError for no location, a filesystem's root, or (not repeated) one with credentials in it."""
    scheme, separator, rest = location.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        raise ValueError(f"{scheme}://...: credentials in a location; give them in the environment")
    check_path(location)
    if separator and not (_parts(location).netloc or rest.strip("/")):
        raise ValueError(f"{shown(location)}: the root of a store is no folder; give {scheme}://BUCKET/PREFIX")


def _parts(uri: str) -> SplitResult:
    """A URI taken apart; `#` is a character of a name, as in `s3://bucket/run#1`."""
    return urlsplit(uri, allow_fragments=False)


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


def _refuse_constant(word: str) -> None:
    """NaN and Infinity are no JSON; `write_json` writes strings for them."""
    raise ValueError(f"{word} is no JSON value")


def _depth(content: Any) -> int:
    """Levels of objects and lists within each other, counted without recursion."""
    depth, level = 0, [content]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
