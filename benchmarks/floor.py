"""Compiles floor.c and calls it. One call from Python makes all the passes of a round in C."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from benchmarks.results import FLOOR
from benchmarks.ways import Observation, Way, identify

COMPILER = os.environ.get("CC", "cc")


class Plan(ctypes.Structure):
    """The struct plan of floor.c."""

    _fields_ = (
        ("sender", ctypes.c_int),
        ("receiver", ctypes.c_int),
        ("messages", ctypes.c_int),
        ("fds_per_message", ctypes.c_int),
        ("size", ctypes.c_size_t),
        ("fds", ctypes.POINTER(ctypes.c_int)),
        ("payloads", ctypes.c_char_p),
        ("packed", ctypes.c_int),
    )


class _Buffer(ctypes.Structure):
    """A struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


@cache
def load_floor() -> ctypes.CDLL:
    """Compiles and loads floor.c. SystemExit, with a message: there is no C compiler."""
    if shutil.which(COMPILER) is None:
        raise SystemExit(f"benchmarks: no C compiler {COMPILER!r} for the C floor (set CC)")
    source = Path(__file__).with_name("floor.c")
    with tempfile.TemporaryDirectory(prefix="fdpass-floor-") as directory:
        library = Path(directory, "floor.so")
        command = [
            COMPILER,
            "-std=gnu11",
            "-O2",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(source),
        ]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, f"C floor: {os.strerror(-result)}")


class FloorWay(Way):
    """Passes messages of equal size, each with the same number of descriptors, in C.

    packed: all messages travel as one message, with up to 253 descriptors.
    """

    def __init__(
        self,
        sender: int,
        receiver: int,
        payloads: Sequence[bytes],
        fds: Sequence[int],
        packed: bool = False,
    ) -> None:
        super().__init__(FLOOR)
        self._lib = load_floor()
        self._fd_count = len(fds)
        self._payloads = payloads
        self._plan = Plan(
            sender=sender,
            receiver=receiver,
            messages=len(payloads),
            fds_per_message=len(fds) // len(payloads),
            size=len(payloads[0]),
            fds=(ctypes.c_int * len(fds))(*fds),
            payloads=b"".join(payloads),
            packed=packed,
        )

    def _repeat(self, function: Callable[..., int], passes: int) -> None:
        _check(function(ctypes.byref(self._plan), ctypes.c_long(passes)))

    def send(self, passes: int) -> None:
        self._repeat(self._lib.floor_send, passes)

    def receive(self, passes: int) -> None:
        self._repeat(self._lib.floor_receive, passes)

    def exchange(self, passes: int) -> None:
        self._repeat(self._lib.floor_exchange, passes)

    def observe(self) -> Observation:
        size = len(self._payloads[0])
        fds = (ctypes.c_int * self._fd_count)()
        data = ctypes.create_string_buffer(size * len(self._payloads))
        _check(self._lib.floor_observe(ctypes.byref(self._plan), fds, data))
        try:
            payloads = [data.raw[at : at + size] for at in range(0, len(data), size)]
            return Observation(payloads, identify(fds))
        finally:
            for fd in fds:
                os.close(fd)


class FloorWriter:
    """Writes the same buffers to each of fds, in C."""

    def __init__(self, fds: Sequence[int], buffers: Sequence[bytes]) -> None:
        self._lib = load_floor()
        self._fds = (ctypes.c_int * len(fds))(*fds)
        self._buffers = (_Buffer * len(buffers))(*(_Buffer(one, len(one)) for one in buffers))
        self._total = sum(map(len, buffers))

    def write(self, passes: int) -> None:
        _check(
            self._lib.floor_write(
                self._fds,
                len(self._fds),
                self._buffers,
                len(self._buffers),
                ctypes.c_size_t(self._total),
                ctypes.c_long(passes),
            )
        )


class Drain:
    """Reads and discards in C, so that this takes the same time for every contender."""

    def __init__(self, fds: Sequence[int], size: int) -> None:
        self._lib = load_floor()
        self._fds = (ctypes.c_int * len(fds))(*fds)
        self._size = size

    def __call__(self, passes: int) -> None:
        """Reads size bytes for each pass from each of fds."""
        total = ctypes.c_size_t(self._size * passes)
        _check(self._lib.floor_drain(self._fds, len(self._fds), total))
