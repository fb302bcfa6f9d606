"""HDF4 files: opened by one thread at a time, and only if they are whole.

The HDF4 library is not thread-safe, and it may crash on a broken file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from pyhdf.error import HDF4Error
from pyhdf.SD import SD

from sifscale.sources import SourceError

_HDF4_MAGIC: Final = b"\x0e\x03\x13\x01"
_OTHER_MAGIC: Final = {
    b"\x89HDF": "HDF5 or netCDF-4", b"CDF": "netCDF-3", b"PK": "a zip archive", b"\x1f\x8b": "a gzip file",
    b"<": "a web page, perhaps of a failed login", b"II*\0": "a TIFF",
}  # fmt: skip
# Data descriptors of HDF4 (HDF Specification and Developer's Guide, chapter 2); all ones mark "no data yet".
_DESCRIPTOR: Final = np.dtype([("tag", ">u2"), ("ref", ">u2"), ("offset", ">u4"), ("length", ">u4")])
_NULL_TAG: Final = 1
_NO_DATA: Final = 0xFFFFFFFF

# Held by whoever calls the HDF4 library, writers too; `open_hdf4` takes it by itself.
hdf4_lock: Final = threading.Lock()


@contextmanager
def open_hdf4(path: Path) -> Iterator[SD]:
    """The data sets (SD) of an HDF4 file, to be read in a ``with`` block by one thread at a time.

    Whatever goes wrong in the library while the block runs becomes a SourceError, too, and the lock is free after
    it. The lock is not re-entrant: open no second file within the block.

    Raises SourceError, one line, for a file that is absent, unreadable, empty, truncated or not HDF4.
    """
    _check_hdf4(path)
    with hdf4_lock:
        try:
            sd = SD(str(path))
            try:
                yield sd
            finally:
                sd.end()
        except HDF4Error as error:
            raise SourceError(f"{path}: the HDF4 library cannot read it ({error}); fetch it again") from None


def _check_hdf4(path: Path) -> None:
    """Refuse what is no whole HDF4 file before the C library sees it: it may crash on a broken one."""
    try:
        if not path.is_file():
            raise SourceError(f"{path}: no such file; check paths.raw and the window's file names")
        with path.open("rb") as stream:
            magic = stream.read(len(_HDF4_MAGIC))
            size = path.stat().st_size
            whole = magic == _HDF4_MAGIC and _is_whole(stream, size)
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from None
    if size == 0:
        raise SourceError(f"{path}: the file has 0 bytes; fetch it again")
    if magic != _HDF4_MAGIC:
        kind = next((kind for start, kind in _OTHER_MAGIC.items() if magic.startswith(start)), "something else")
        raise SourceError(f"{path}: not HDF4 but {kind} (begins with {magic!r}); give the .hdf granule")
    if not whole:
        raise SourceError(f"{path}: truncated, it lists data beyond its {size} bytes; fetch it again")


def _is_whole(stream: BinaryIO, size: int) -> bool:
    """Whether all that the data descriptors of an HDF4 file list lies within its `size` bytes."""
    block_at, visited = len(_HDF4_MAGIC), set[int]()
    while block_at:
        if block_at in visited:  # a loop: no library writes one, but it must not hang us
            return False
        visited.add(block_at)
        stream.seek(block_at)
        head = stream.read(6)
        count, block_at = int.from_bytes(head[:2]), int.from_bytes(head[2:])
        block = stream.read(count * _DESCRIPTOR.itemsize)
        if len(head) < 6 or len(block) < count * _DESCRIPTOR.itemsize:
            return False
        entries = np.frombuffer(block, _DESCRIPTOR)
        used = (entries["tag"] != _NULL_TAG) & (entries["offset"] != _NO_DATA) & (entries["length"] != _NO_DATA)
        ends = entries["offset"][used].astype(np.int64) + entries["length"][used]
        if (ends > size).any():
            return False
    return True
