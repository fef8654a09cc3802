"""The preloaded library: compiling it, starting Python with it, and planning what goes wrong."""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fdpass_c import _native

SOURCE = Path(__file__).with_name("preload.c")
_PATH = "FAULTS_LIBRARY"


def start(program: str, *arguments: str) -> int:
    """Runs a module with the library in front of libc; returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder, "preload.so"))
        strict = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        subprocess.run(["gcc", *strict, str(SOURCE), "-o", library, "-ldl"], check=True)
        # Python's own blocks come from malloc where nothing else asks for them.
        environment = {**os.environ, "LD_PRELOAD": library, _PATH: library}
        command = [sys.executable, "-m", program, *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


def is_loaded() -> bool:
    return _PATH in os.environ


class Step(NamedTuple):
    """A system call of an operation, the number-th of its kind, and what the kernel answered."""

    call: str
    number: int
    result: int


ALL = sys.maxsize


class Fault(NamedTuple):
    """What goes wrong: so many calls of a kind, from the number-th on, fail with error; or move at
    most so many bytes, or messages, where error is 0. With both only the first moves so many.
    Without a call nothing goes wrong."""

    call: str = ""
    number: int = 0
    error: int = 0
    most: int = 0
    times: int = 1


class Library:
    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(os.environ[_PATH])
        library.fault_arm.argtypes = [*[ctypes.c_int, ctypes.c_long] * 2, ctypes.c_long]
        library.fault_arm_memory.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        names = (ctypes.c_char_p * 100).in_dll(library, "fault_names")
        self.names = [name.decode() for name in iter(iter(names).__next__, None)]
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._fired = ctypes.c_long.in_dll(library, "fault_fired")
        self._logged = ctypes.c_long.in_dll(library, "fault_logged")
        self._calls = (ctypes.c_int * 4096).in_dll(library, "fault_calls")
        self._results = (ctypes.c_long * 4096).in_dll(library, "fault_results")
        self._allocations = ctypes.c_long.in_dll(library, "fault_allocations")
        self._core = _find_memory(_native.__file__)
        self.disarm = library.fault_disarm

    def arm(self, fault: Fault) -> None:
        """Plans it for this thread, and watches, until disarm."""
        self._library.fault_arm(self._numbers.get(fault.call, -1), *fault[1:])

    @contextmanager
    def watching(self) -> Iterator[list[Step]]:
        """The system calls of the block are in the list after it."""
        steps: list[Step] = []
        self.arm(Fault())
        try:
            yield steps
        finally:
            self.disarm()
            steps += self.list_steps()

    def list_steps(self) -> list[Step]:
        """What has not failed, by the plan, since the last one was armed."""
        steps = []
        counts: dict[str, int] = {}
        for at in range(self._logged.value):
            name = self.names[self._calls[at]]
            steps.append(Step(name, counts.get(name, 0), self._results[at]))
            counts[name] = counts.get(name, 0) + 1
        return steps

    @contextmanager
    def failing(self, call: str, number: int, error: int, lasting: bool) -> Iterator[None]:
        """The number-th such call fails with error; lasting: and so does each after it."""
        self.arm(Fault(call, number, error, times=ALL if lasting else 1))
        try:
            yield
        finally:
            self.disarm()

    @contextmanager
    def cut_short(self, call: str, number: int, most: int) -> Iterator[None]:
        """The number-th such call moves at most so many bytes, or messages."""
        self.arm(Fault(call, number, most=most))
        try:
            yield
        finally:
            self.disarm()

    @contextmanager
    def without_memory(self, number: int) -> Iterator[None]:
        """The number-th allocation by the C core finds no memory."""
        self._library.fault_arm_memory(number, *self._core)
        try:
            yield
        finally:
            self.disarm()

    @property
    def fired(self) -> bool:
        return bool(self._fired.value)

    @property
    def allocations(self) -> int:
        return self._allocations.value


def _find_memory(file: str | None) -> tuple[int, int]:
    """Where the code of a shared library stands in this process."""
    ends = [
        int(end, 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(os.path.basename(str(file)))
        for end in line.split()[0].split("-")
    ]
    return min(ends), max(ends)
