"""Opening HDF4 files: whole ones by one thread at a time, all others refused in one line."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from pyhdf.SD import SD, SDC

from sifscale.sources import SourceError
from sifscale.sources.hdf4 import hdf4_lock, open_hdf4

MAGIC = b"\x0e\x03\x13\x01"
VALUES = np.random.default_rng(1).integers(0, 1000, (60, 80), np.int16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one compressed data set."""
    file = SD(str(tmp_path / "a.hdf"), SDC.WRITE | SDC.CREATE)
    dataset = file.create("values", SDC.INT16, VALUES.shape)
    dataset.setcompress(SDC.COMP_DEFLATE, 5)
    dataset[:] = VALUES
    dataset.endaccess()
    file.end()
    return tmp_path / "a.hdf"


def test_a_whole_file_is_opened(path: Path) -> None:
    with open_hdf4(path) as file:
        np.testing.assert_array_equal(file.select("values").get(), VALUES)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no such file"),
        (b"", "0 bytes"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not HDF4 but HDF5 or netCDF-4"),
        (b"CDF\x01" + bytes(100), "not HDF4 but netCDF-3"),
        (b"<!DOCTYPE html><html>", "not HDF4 but a web page"),
        (b"nonsense", "not HDF4 but something else"),
        (MAGIC, "truncated"),
        (MAGIC + b"\x00\x01\x00\x00\x00\x04" + bytes(12), "truncated"),  # a loop
    ],
)
def test_a_file_that_is_no_hdf4_is_refused_by_what_it_is(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "a.hdf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=part) as refusal, open_hdf4(path):
        pass
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)


def test_a_file_that_may_not_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not keep root out
    with pytest.raises(SourceError, match="cannot be opened .Permission denied.; check its permissions"):
        with open_hdf4(path):
            pass


def test_truncated_files_are_refused_and_never_crash(path: Path) -> None:
    """In a process of its own, because the C library could take the tests down with it."""
    whole = path.read_bytes()
    cut = []
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        cut.append(path.with_name(f"cut{share}.hdf"))
        cut[-1].write_bytes(whole[: int(share * len(whole))])
    program = (
        "import sys\nfrom pathlib import Path\nfrom sifscale.sources import SourceError\n"
        "from sifscale.sources.hdf4 import open_hdf4\n"
        "for name in sys.argv[1:]:\n    try:\n        with open_hdf4(Path(name)):\n            pass\n"
        "    except SourceError as error:\n        print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program, *map(str, cut)], capture_output=True, text=True, check=True)
    lines = answer.stdout.splitlines()
    assert len(lines) == len(cut)
    assert all("truncated" in line for line in lines)


def test_threads_take_turns(path: Path) -> None:
    inside: list[str] = []
    alone: list[bool] = []

    def read(name: str) -> None:
        for _ in range(20):
            with open_hdf4(path) as file:
                inside.append(name)
                same = np.array_equal(file.select("values").get(), VALUES)
                alone.append(same and inside == [name])
                inside.clear()

    threads = [threading.Thread(target=read, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [True] * 80


def test_the_lock_is_free_after_any_error(path: Path) -> None:
    path.with_name("broken.hdf").write_bytes(MAGIC + bytes(106))
    with pytest.raises(SourceError, match="HDF4 library cannot read it"), open_hdf4(path.with_name("broken.hdf")):
        pass
    assert not hdf4_lock.locked()
    with pytest.raises(SourceError, match="HDF4 library cannot read it"), open_hdf4(path) as file:
        file.select("no such data set")
    assert not hdf4_lock.locked()
    with pytest.raises(KeyError), open_hdf4(path):
        raise KeyError("of the reader itself")
    assert not hdf4_lock.locked()
