"""The preloaded library: compiling it, starting Python with it, and planning what goes wrong."""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections import Counter
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
    process: int = 0
    """0 is the process that armed the library, 1 its child."""

    def __str__(self) -> str:
        return f"{'the child: ' * self.process}{self.call} {self.number}"


ALL = sys.maxsize
ALONE = -1


class Fault(NamedTuple):
    """What goes wrong: so many calls of a kind, from the number-th on, fail with error; or move at
    most so many bytes, or messages, where error is 0. With both only the first moves so many.
    Without a call nothing goes wrong. process: as for Step, or ALONE for the one that arms the
    library, whose children are not watched."""

    call: str = ""
    number: int = 0
    error: int = 0
    most: int = 0
    times: int = 1
    process: int = 0


class Library:
    def __init__(self) -> None:
        self._library = library = ctypes.CDLL(os.environ[_PATH])
        library.fault_arm.argtypes = [*[ctypes.c_int, ctypes.c_long] * 2, ctypes.c_long]
        library.fault_arm.argtypes += [ctypes.c_int]
        library.fault_arm_memory.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        names = (ctypes.c_char_p * 100).in_dll(library, "fault_names")
        self.names = [name.decode() for name in iter(iter(names).__next__, None)]
        self._numbers = {name: number for number, name in enumerate(self.names)}
        for function in (library.fault_fired, library.fault_logged):
            function.restype = ctypes.c_long
        for function in (library.fault_call, library.fault_result):
            function.argtypes, function.restype = [ctypes.c_int, ctypes.c_long], ctypes.c_long
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
        """What has not failed, by the plan, since the last one was armed: here, and in a child that
        shares the log."""
        steps = []
        for process in (0, 1):
            counts: Counter[str] = Counter()
            for at in range(self._library.fault_logged(process)):
                name = self.names[self._library.fault_call(process, at)]
                result = self._library.fault_result(process, at)
                steps.append(Step(name, counts[name], result, process))
                counts[name] += 1
        return steps

    @contextmanager
    def failing(self, step: Step, error: int, lasting: bool = False) -> Iterator[None]:
        """This call fails with error; lasting: and so does each later one of its kind."""
        times = ALL if lasting else 1
        self.arm(Fault(step.call, step.number, error, times=times, process=step.process))
        try:
            yield
        finally:
            self.disarm()

    @contextmanager
    def cut_short(self, step: Step, most: int) -> Iterator[None]:
        """This call moves at most so many bytes, or messages."""
        self.arm(Fault(step.call, step.number, most=most, process=step.process))
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
        return bool(self._library.fault_fired())

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
