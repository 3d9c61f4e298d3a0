"""What can still be read of a ROS 2 SQLite bag that is cut short or damaged: its rows from the first on.

Its index of times is of no use then; the rows themselves lie in the order in which they were recorded.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote


class SqliteScan:
    """The readable messages of a SQLite bag. ValueError for a file that is none, or in which none can be read.

    `topics`: how many messages each has; `missing`: what could not be read, empty where nothing is missing.
    """

    def __init__(self, path: Path):
        self._path, self.missing = path, ""
        self.topics: Counter[str] = Counter()
        self._require_whole_pages()
        try:
            for topic, _, _, _ in self.messages():
                self.topics[topic] += 1
        except sqlite3.Error as error:
            raise ValueError(f"{path}: expected a bag, got a file that SQLite cannot read: {error}") from error
        if not self.topics:
            raise ValueError(f"{path}: expected a bag, got a SQLite file without a message that can be read")

    def _require_whole_pages(self) -> None:
        """SQLite takes what is missing of a page for zeros, and so what is in it for something else."""
        with self._path.open("rb") as file:
            header = file.read(18)
        size = self._path.stat().st_size
        page = int.from_bytes(header[16:18], "big")
        page = 65536 if page == 1 else page
        if header.startswith(b"SQLite format 3") and page and size % page:
            whole = size - size % page
            raise ValueError(
                f"{self._path}: expected a bag, got a SQLite file that is cut within a page; "
                f"`truncate -s {whole} {self._path}` takes away the useless rest of it, and what is before can be read"
            )

    def messages(self) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, nanoseconds at which it was recorded, data), in the order of the file."""
        uri = f"file:{quote(str(self._path.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            # Without it SQLite reads nothing of a file that is shorter than its header says.
            database.execute("PRAGMA writable_schema=ON")
            topics = {key: (name, kind) for key, name, kind in database.execute("SELECT id, name, type FROM topics")}
            rows = database.execute("SELECT topic_id, timestamp, data FROM messages NOT INDEXED ORDER BY id")
            while True:
                try:
                    row = rows.fetchone()
                except sqlite3.DatabaseError as error:
                    self.missing = f"it breaks off ({error})"
                    return
                if row is None:
                    return
                if row[0] in topics:
                    yield *topics[row[0]], row[1], bytes(row[2])
