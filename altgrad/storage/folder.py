"""A folder on a local disk, NFS or an object store, accessed through pyarrow's filesystems: one interface for all.

Every write replaces a whole file atomically: a reader sees the file complete or not at all.  Files that must survive a
loss of power (records, checkpoints) are written durably, which waits for the disk; small parts are not.

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
from altgrad.text.json_text import json_text
from altgrad.text.path_text import check_path

T = TypeVar("T")
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_GCS_OPTIONS = ("anonymous", "endpoint_override", "scheme")
# A server that does not answer is given up after 2 x 5 s.  `Folder.patient` handles longer outages.
_CONNECT_SECONDS, _REQUEST_SECONDS, _TRIES = 5.0, 30.0, 2
_GCS_RETRIES = timedelta(seconds=3)
_LARGEST_JSON, _DEEPEST_JSON = 2**28, 50  # bytes (a plan of about 100,000 runs) and levels (a record has six)
_NOT_AN_OUTAGE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


@dataclass(frozen=True)
class Folder:
    """A folder and its filesystem.  `Folder.at("results")`, `Folder.at("s3://bucket/prefix")`.

    `query`: the options of its URI.  `patience`: seconds for which an operation is repeated when storage refuses it.
    """

    filesystem: pafs.FileSystem
    path: str
    query: str = ""
    patience: float = 0.0

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> Folder:
        """The folder at a local path or a URI (`s3://`, `gs://`, `file://`).  It need not exist.

        For a server other than AWS: `s3://bucket/prefix?endpoint_override=HOST:PORT&scheme=http`, or AWS_ENDPOINT_URL.
        `gs://` accepts these two options too, and `anonymous=true` for a public bucket.
        Raises ValueError for a URI with credentials or unknown options.
        """
        text = os.fspath(location)
        check_location(text)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), absolute(text))
        uri = _parts(text)
        if uri.scheme == "s3":
            return cls(_s3(uri), f"{uri.netloc}{uri.path}".rstrip("/"), uri.query)
        if uri.scheme in ("gs", "gcs"):
            return cls(_gcs(uri), f"{uri.netloc}{uri.path}".rstrip("/"), uri.query)
        filesystem, path = pafs.FileSystem.from_uri(text.replace("#", "%23"))  # `#` belongs to the name
        return cls(filesystem, path.rstrip("/"), uri.query)

    def patient(self, seconds: float = PATIENCE) -> Folder:
        """The same folder; it repeats refused operations for up to `seconds`.  0 reports the first refusal at once."""
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
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Folder:
        """The folder that holds this one."""
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine, or on one that is mounted like it."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def list(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """Files and folders in the folder, sorted by path; empty if the folder does not exist."""
        hides_folders = not recursive and self.filesystem.type_name == "gcs"
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive or hides_folders)
        found = self._insist(lambda: self.filesystem.get_file_info(selector))
        if hides_folders:
            found = _direct_children(self.path, found)
        return sorted(found, key=lambda info: info.path)

    def has(self, name: str) -> bool:
        """Whether the folder has a file of that name.  Raises OSError."""
        return self._insist(lambda: self.filesystem.get_file_info(f"{self.path}/{name}")).type == pafs.FileType.File

    def read_bytes(self, name: str, at_most: int | None = None) -> bytes:
        """Content of a file in the folder.  Raises FileNotFoundError, or ValueError if it has over `at_most` bytes."""

        def read() -> bytes:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
                if at_most is not None and file.size() > at_most:
                    raise ValueError(f"{self / name}: {file.size()} bytes; at most {at_most} are read")
                return bytes(file.read())

        return self._insist(read)

    def write_bytes(self, name: str, content: bytes | pa.Buffer, *, durable: bool = False) -> None:
        """Write a file atomically: it is complete or absent, even if the process dies.  Creates the folder.

        `durable`: the file also survives a loss of power right afterwards, as an object in an object store always does.
        """
        self._insist(lambda: self._write(f"{self.path}/{name}", content, durable))

    def make_durable(self, names: Iterable[str]) -> None:
        """Flush files of the folder to the disk, so that they survive a loss of power; missing files are ignored.

        Raises OSError.
        """
        if self.is_local:
            paths = [f"{self.path}/{name}" for name in names]
            self._insist(lambda: _sync_all(paths))

    def delete(self, name: str) -> None:
        """Delete a file in the folder.  Raises FileNotFoundError."""
        self._insist(lambda: self.filesystem.delete_file(f"{self.path}/{name}"))

    def _insist(self, action: Callable[[], T]) -> T:
        """Run `action`; while storage refuses it, repeat it for up to `patience` seconds."""
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
        if not self.is_local:  # an object store needs no folder, and shows an object when its upload is complete
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
        """Read a JSON object.

        Raises FileNotFoundError; ValueError, which names the file, if it holds anything else, is over 256 MiB, or has
        more than 50 levels.
        """
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
        """Write a JSON object durably; NaN and inf, which JSON lacks, become "NaN", "Infinity" and "-Infinity"."""
        self.write_bytes(name, (json_text(content, indent=2) + "\n").encode(), durable=True)


def _sync_all(paths: Sequence[str]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            _sync(path)
    for folder in sorted({os.path.dirname(path) for path in paths}):
        _sync_folder(folder)


def _sync(path: str) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    """Flush a folder's list of names to the disk; errors of file systems without that operation are ignored."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise


def check_location(location: str) -> None:
    """Raises ValueError for an empty location, a filesystem's root, or credentials, which the message leaves out."""
    scheme, separator, rest = location.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        raise ValueError(f"{scheme}://...: credentials in a location; give them in the environment")
    check_path(location)
    if separator and not (_parts(location).netloc or rest.strip("/")):
        raise ValueError(f"{shown(location)}: the root of a store is no folder; give {scheme}://BUCKET/PREFIX")


def absolute(location: str) -> str:
    """A URI unchanged, or a local path made absolute: so records keep it, which are read from other folders."""
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def _parts(uri: str) -> SplitResult:
    """The components of a URI; `#` belongs to the path, as in `s3://bucket/run#1`."""
    return urlsplit(uri, allow_fragments=False)


def _s3(uri: SplitResult) -> pafs.S3FileSystem:
    """The store of an `s3://` URI; its region is that of the URI, the environment or, for AWS, the bucket."""
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
    """The options of a URI.  Raises ValueError for an option that is not in `known`."""
    options = dict(parse_qsl(uri.query))
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"{uri.scheme}://{uri.netloc}: unknown option {', '.join(unknown)}; known: {', '.join(known)}")
    return options


def _direct_children(path: str, found: Sequence[pafs.FileInfo]) -> list[pafs.FileInfo]:
    """The files and folders directly in `path`, from the list of all objects below it.

    Google's store has no folders; pyarrow lists a folder only if an empty object marks it.  Here `a/b/c` implies that
    `a` contains the folder `b`.
    """
    children: dict[str, pafs.FileInfo] = {}
    for info in found:
        name, slash, _ = info.path[len(path) + 1 :].partition("/")
        children[name] = pafs.FileInfo(f"{path}/{name}", pafs.FileType.Directory) if slash else info
    return list(children.values())


def _refuse_constant(word: str) -> None:
    """Raises ValueError: NaN and Infinity are not JSON; `write_json` writes strings for them."""
    raise ValueError(f"{word} is no JSON value")


def _depth(content: Any) -> int:
    """The number of nested levels of objects and lists, counted without recursion."""
    depth, level = 0, [content]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
