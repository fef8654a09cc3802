"""Interrupts every operation at every place, says what it found."""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import fdpass_c
from support.attacks import Attacks
from support.attempts import Attempt
from support.signals import Interruption

_OURS = os.path.dirname(fdpass_c.__file__) + os.sep


def _compile(folder: str) -> ctypes.PyDLL:
    library = str(Path(folder, "trace.so"))
    source = str(Path(__file__).with_name("trace.c"))
    strict = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    includes = f"-I{sysconfig.get_path('include')}"
    subprocess.run(["gcc", *strict, includes, source, "-o", library], check=True)
    loaded = ctypes.PyDLL(library)
    loaded.interrupts_arm.argtypes = [ctypes.py_object, ctypes.c_long, ctypes.c_int]
    loaded.interrupts_arm.restype = None
    loaded.interrupts_disarm.restype = ctypes.c_long
    return loaded


def _interrupt(_signum: int, frame: FrameType | None) -> None:
    # asyncio itself forgets a task if a handler raises in its loop, or in what stands for a future.
    code = frame.f_code if frame is not None else _interrupt.__code__
    is_asyncio = Path(code.co_filename).parent.name == "asyncio"
    if not is_asyncio and not code.co_qualname.startswith("_Waiting."):
        raise Interruption


class Interrupts:
    def __init__(self, library: ctypes.PyDLL, quick: bool) -> None:
        self._library = library
        self._quick = quick
        self._seen = 0
        # What a handler's exception drops is closed, with a warning. Python says that a coroutine
        # that is interrupted at its first step was never awaited.
        never = "RuntimeWarning(\"coroutine 'Channel.__aexit__' was never awaited"
        self.attacks = Attacks(("Interruption", "ResourceWarning", never))

    @contextmanager
    def _at(self, number: int) -> Iterator[None]:
        # The first time of all, Python 3.12 heeds this in the next settrace only.
        sys._getframe().f_trace_opcodes = True
        self._library.interrupts_arm(_OURS, number, signal.SIGUSR1)
        try:
            yield
        finally:
            self._seen = self._library.interrupts_disarm()

    def attack(self, name: str, make: Callable[[], Attempt]) -> None:
        number = len(name) % 29 if self._quick else 0
        while True:
            self.attacks.attack(f"{name}: at bytecode {number}", make, self._at(number))
            if self._seen <= number:
                break
            self.attacks.counts["boundaries interrupted"] += 1
            # The longest operations repeat a few steps for each of 600 messages.
            number += max(29, number // 50) if self._quick else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m interrupts")
    parser.add_argument("--quick", action="store_true", help="a sample")
    parser.add_argument("operations", nargs="*", help="what their names begin with")
    options = parser.parse_args()
    signal.signal(signal.SIGUSR1, _interrupt)
    with tempfile.TemporaryDirectory() as folder:
        interrupts = Interrupts(_compile(folder), options.quick)
        in_loops = 5 if options.quick else 1
        return interrupts.attacks.run(interrupts.attack, options.operations, in_loops)


if __name__ == "__main__":
    sys.exit(main())
