"""A folder on a local disk, NFS or an object store, through pyarrow's filesystems: one spelling for all.

Writes are whole-file and atomic: a reader sees a file complete or not at all.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs


@dataclass(frozen=True)
class Folder:
    """A folder and its filesystem.  `Folder.at("results")`, `Folder.at("s3://bucket/prefix")`."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> Folder:
        """The folder at a local path or a URI (`s3://`, `gs://`, `file://`).  It need not exist."""
        text = os.fspath(location)
        if "://" in text:
            filesystem, path = pafs.FileSystem.from_uri(text)
            return cls(filesystem, path.rstrip("/"))
        return cls(pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.filesystem, f"{self.path}/{name}")

    def __str__(self) -> str:
        scheme = self.filesystem.type_name
        return self.path if scheme == "local" else f"{'gs' if scheme == 'gcs' else scheme}://{self.path}"

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def list(self, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """What is in the folder, sorted by path; empty where the folder does not exist."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)

    def has(self, name: str) -> bool:
        return self.filesystem.get_file_info(f"{self.path}/{name}").type == pafs.FileType.File

    def read_bytes(self, name: str) -> bytes:
        """Content of a file in the folder.  Raises FileNotFoundError."""
        with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write_bytes(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file whole: complete or absent, also when the process dies.  Creates the folder."""
        target = f"{self.path}/{name}"
        self.filesystem.create_dir(target.rsplit("/", 1)[0], recursive=True)
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
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


def _strict(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "NaN" if value != value else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
