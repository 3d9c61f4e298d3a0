"""Files that are whole or absent, written under a temporary name and then renamed; folders with one writer.

Knows nothing of what it writes. After a crash a folder may hold names that start with `.tmp-`; nothing
reads them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Put a complete file in its place, on disk before it has its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


class _Sink:
    """A file that is only written, and remembers what the disk said first."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def through_python(path: Path) -> Iterator[Any]:
    """A new file to hand to a library that turns errors of the disk into errors of its own: OSError all the same.

    It has `write` and `flush` alone.
    """
    with path.open("wb") as file:
        sink = _Sink(file)
        try:
            yield sink
        except Exception:
            if sink.error is not None:
                raise OSError(sink.error.errno, sink.error.strerror, str(path)) from sink.error
            raise


def write_text(path: Path, text: str) -> None:
    """Write `text`: a reader sees the old file or the new one, never half."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def sync(path: Path) -> None:
    """Wait until a file is on the disk, and known there by its name."""
    for one in (path, path.parent):
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, document: Any) -> None:
    """Write `document` as JSON; numpy numbers and arrays become plain ones."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, default=_plain) + "\n")


def plain(document: Any) -> Any:
    """`document` as it comes back from JSON: tuples are lists, numpy values plain ones."""
    return json.loads(json.dumps(document, default=_plain))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for this process; ValueError when another process holds it.

    Released at any kind of exit; a folder that is empty then is taken away again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The lock is on the folder itself: no file is left behind in a finished data set.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out={folder}: expected a folder that no other process writes, got one that is being written; "
                "wait for that process, or choose another out="
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()
    finally:
        os.close(handle)


def _plain(value: object) -> Any:
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    if isinstance(value, (np.ndarray, np.generic)) and convert is not None:
        return convert()
    raise TypeError(f"expected a value that JSON can hold, got {type(value).__name__}: {value!r}")
