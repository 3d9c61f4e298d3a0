from __future__ import annotations

import pytest

from vla_runtime.disk import locked, replacing, write_text


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
