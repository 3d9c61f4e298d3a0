"""Bags on disk, read: MCAP and SQLite of ROS 2 and those of ROS 1, whole or as far as their recorder came.

What cannot be used is left out and counted, never the rest for its sake. It knows neither contracts nor transports.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from vla_runtime.ros.messages import decode, decoded
from vla_runtime.ros.sqlite_scan import SqliteScan
from vla_runtime.types import SpecMismatch

if TYPE_CHECKING:
    from vla_runtime.ros.mcap_scan import McapScan

    Scan = McapScan | SqliteScan


def _mcap_scan(path: Path) -> McapScan:
    # Late: a bridge reads no bags, and runs where nobody has installed mcap.
    from vla_runtime.ros.mcap_scan import McapScan

    return McapScan(path)


# What reads a file from its front that its reader cannot open.
_SCANS: dict[str, Callable[[Path], Scan]] = {".mcap": _mcap_scan, ".db3": SqliteScan}
_DIGITS = re.compile(r"(\d+)")
_log = logging.getLogger(__name__)


class Raw(NamedTuple):
    """A message of a bag as bytes, with the seconds at which it was recorded, and who can decode it."""

    topic: str
    kind: str
    seconds: float
    data: bytes
    reader: AnyReader | None

    def message(self) -> Any:
        """The message. SpecMismatch for bytes that are none of this type."""
        reader = self.reader
        if reader is None:
            return decode(self.kind, self.data)
        # What a bag says of its types is what its bytes are.
        return decoded(self.kind, lambda: reader.deserialize(self.data, self.kind))


class Report:
    """What of a bag could not be used: `left_out`, messages by topic, and `notes`, what else must be known of it.

    The first message of each topic and every note are logged when they come.
    """

    def __init__(self, path: Path):
        self._path = path
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.notes: list[str] = []

    def leave_out(self, topic: str, seconds: float, reason: str) -> None:
        """Count a message. seconds: when it was recorded."""
        self.left_out[topic] += 1
        if topic not in self.first:
            self.first[topic] = f"recorded at {seconds:.3f} s: {reason}"
            _log.warning("%s: %s: left out, %s", self._path, topic, self.first[topic])

    def note(self, what: str) -> None:
        """Keep and log what must be known of the bag, once."""
        if what not in self.notes:
            self.notes.append(what)
            _log.warning("%s: %s", self._path, what)


class Bag:
    """A bag opened for reading, to be used in a `with`. ValueError for what is no bag, or of which nothing is whole.

    `topics`: those that have messages; `missing`: what the files lack.
    """

    def __init__(self, path: Path):
        self._path, self._open = path, ExitStack()
        self.missing: list[str] = []
        self._parts: list[AnyReader | Scan] = []

    def __enter__(self) -> Bag:
        try:
            self._read()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def topics(self) -> set[str]:
        topics: set[str] = set()
        for part in self._parts:
            if not isinstance(part, AnyReader):
                topics |= set(part.topics)
            else:
                topics |= {connection.topic for connection in part.connections if connection.msgcount}
        return topics

    def raw(self, topics: Collection[str] | None = None) -> Iterator[Raw]:
        """All messages, or those of `topics`, in the order in which they were recorded.

        ValueError where a file turns out to be damaged.
        """
        for part in self._parts:
            if not isinstance(part, AnyReader):
                for topic, kind, nanoseconds, data in part.messages():
                    if topics is None or topic in topics:
                        yield Raw(topic, kind, nanoseconds / 1e9, data, None)
                continue
            wanted = [each for each in part.connections if topics is None or each.topic in topics]
            stored = part.messages(wanted) if wanted else iter(())
            while True:
                try:
                    connection, nanoseconds, data = next(stored)
                except StopIteration:
                    break
                except Exception as error:
                    # Damaged bytes meet decompressors and parsers that raise what they like.
                    raise ValueError(
                        f"{part.paths[0]}: expected a readable bag, got one that is damaged inside, "
                        f"{type(error).__name__}: {error}; take a whole copy of it, or save what is whole in an .mcap "
                        "file with `mcap recover` (github.com/foxglove/mcap)"
                    ) from error
                yield Raw(connection.topic, connection.msgtype, nanoseconds / 1e9, data, part)

    def messages(
        self, topics: Collection[str] | None = None, report: Report | None = None
    ) -> Iterator[tuple[str, Any, float]]:
        """(topic, message, seconds at which it was recorded), in that order; of `topics` alone where they are given.

        report: where messages that cannot be decoded are counted; they are left out. ValueError for topics that are
        not in the bag, for one without messages, and where a file turns out to be damaged.
        """
        report = Report(self._path) if report is None else report
        there = self.topics
        if topics is not None and not set(topics) <= there:
            raise ValueError(f"{self._path}: expected the topics {sorted(set(topics) - there)}, got {sorted(there)}")
        if not there:
            raise ValueError(f"{self._path}: expected messages, got none")
        for raw in self.raw(topics):
            try:
                message = raw.message()
            except SpecMismatch as error:
                report.leave_out(raw.topic, raw.seconds, str(error))
                continue
            yield raw.topic, message, raw.seconds

    def _read(self) -> None:
        if not self._path.exists():
            raise ValueError(f"{self._path}: expected a bag, got no such file or folder")
        files = _files(self._path)
        for file in files:
            _require_no_journal(file)
        try:
            self._parts = [self._opened(self._path)]
            return
        except Exception as error:
            whole = f"{type(error).__name__}: {error}"
        if not files:
            names = sorted(entry.name for entry in self._path.iterdir())[:5] if self._path.is_dir() else self._path.name
            raise ValueError(
                f"{self._path}: expected a bag (a folder with .mcap or .db3 files, such a file, or a .bag of ROS 1), "
                f"got {names}"
            )
        if self._path.is_dir():
            self.missing.append(f"its files are read without its metadata.yaml, since {_short(whole)}")
        errors = []
        for file in files:
            try:
                self._parts.append(self._part(file))
            except ValueError as error:
                errors.append(error)
        if not self._parts:
            raise errors[0]
        self.missing += [f"a file is left out, {error}" for error in errors]

    def _part(self, file: Path) -> AnyReader | Scan:
        try:
            return self._opened(file)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if file.suffix not in _SCANS:
                raise ValueError(f"{file}: expected a bag, got {reason}; {_remedy(file)}") from error
        scan = _SCANS[file.suffix](file)
        count = sum(scan.topics.values())
        self.missing.append(
            f"{file.name}: {count} messages are read from its front, since {scan.missing or _short(reason)}"
        )
        return scan

    def _opened(self, path: Path) -> AnyReader:
        return self._open.enter_context(AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)))


def messages(path: Path, topics: Collection[str] | None = None) -> Iterator[tuple[str, Any, float]]:
    """All messages of a bag, as `Bag.messages` has them."""
    with Bag(path) as bag:
        yield from bag.messages(topics)


def _files(path: Path) -> list[Path]:
    """The files a bag consists of, in the order in which they were recorded."""
    if not path.is_dir():
        return [path]
    files = [file for file in path.iterdir() if file.suffix in (".mcap", ".db3")]
    # bag_10 comes after bag_9.
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _DIGITS.split(file.name)])


def _require_no_journal(file: Path) -> None:
    """Of a killed recorder's SQLite file a part lies beside it: whoever reads the file alone does not see it."""
    for ending in ("-wal", "-journal"):
        beside = file.with_name(file.name + ending)
        if file.suffix == ".db3" and beside.exists() and beside.stat().st_size:
            raise ValueError(
                f"{file}: expected a finished SQLite file, got one whose last messages are still in {beside.name}; "
                f"`sqlite3 {file} 'select count(*) from messages'` puts them into it"
            )


def _remedy(path: Path) -> str:
    """Who mends a file that cannot be read."""
    if path.suffix == ".bag" or path.name.endswith(".bag.active"):
        return (
            f"`rosbag reindex {path}` of ROS 1 mends one whose recorder was killed; rename what ends in .active to .bag"
        )
    return "expected are folders with .mcap or .db3 files, such files, and .bag files of ROS 1"


def _short(text: str) -> str:
    return " ".join(text.split())[:160]
