from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_runtime.disk import locked, replacing, through_python, write_text


def test_half_written_files_never_take_the_place_of_whole_ones(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "whole")
    with pytest.raises(AttributeError), replacing(path) as temporary:
        temporary.write_text("half").no_such_thing()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_writer_is_refused_and_nothing_is_left(tmp_path):
    folder = tmp_path / "run"
    with locked(folder), pytest.raises(ValueError, match="no other process"), locked(folder):
        pass
    assert not folder.exists(), "a run that wrote nothing leaves nothing"
    with locked(folder):
        write_text(folder / "a", "kept")
    assert (folder / "a").read_text() == "kept"


def test_what_the_disk_says_is_heard_through_a_library(tmp_path):
    """A library that hides errors of the disk behind its own, as torch does."""

    def write(path):
        with through_python(path) as file:
            try:
                file.write(b"x" * 100_000)
            except OSError as error:
                raise RuntimeError("unexpected pos 64 vs 0") from error

    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '/dev/full'"):
        write(Path("/dev/full"))
    with pytest.raises(RuntimeError, match="its own"), through_python(tmp_path / "a") as file:
        raise RuntimeError("its own")
    with through_python(tmp_path / "b") as file:
        np.save(file, np.arange(3))
    assert np.load(tmp_path / "b").tolist() == [0, 1, 2]
