"""Compiles the C core for every supported platform, and runs its tests on those that run here.

    python tools/portability.py            # prints a table; a missing tool is reported as "not run"
    python tools/portability.py --strict   # the same, but a missing tool is a failure
    python tools/portability.py --json     # prints the results as JSON

zig (`ziglang` on PyPI) compiles for other platforms, because it includes their headers. The C tests
(tests/c/test_*.c, each a program) run with gcc, clang, gcc -m32 and musl-gcc, and for other
processors under qemu's user mode. With strace it checks that a batch takes one system call.
"""

import argparse
import importlib.util
import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from workshop import BUILD, ROOT, Failure, format_table, make_environment, run, show_progress

CORE = ROOT / "csrc"
C_TESTS = ROOT / "tests" / "c"
OUT = BUILD / "portability"
PROGRAM_FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
FLAGS = [*PROGRAM_FLAGS, "-Wconversion"]
# ziglang 0.15 is the first version with FreeBSD's headers.
ZIG = "ziglang>=0.15"
SECONDS_A_PROGRAM = 120


@dataclass(frozen=True)
class Target:
    name: str
    triple: str


COMPILED = [
    Target("Linux x86_64, glibc 2.17", "x86_64-linux-gnu.2.17"),
    Target("Linux i686, glibc 2.17", "x86-linux-gnu.2.17"),
    Target("Linux aarch64, glibc 2.17", "aarch64-linux-gnu.2.17"),
    Target("Linux armv7, glibc 2.17", "arm-linux-gnueabihf.2.17"),
    Target("Linux s390x, glibc 2.17", "s390x-linux-gnu.2.17"),
    # The next two are the oldest versions of glibc for these processors.
    Target("Linux ppc64le, glibc 2.19", "powerpc64le-linux-gnu.2.19"),
    Target("Linux riscv64, glibc 2.27", "riscv64-linux-gnu.2.27"),
    Target("Linux x86_64, musl", "x86_64-linux-musl"),
    Target("Linux i686, musl", "x86-linux-musl"),
    Target("Linux aarch64, musl", "aarch64-linux-musl"),
    Target("Linux armv7, musl", "arm-linux-musleabihf"),
    Target("Linux s390x, musl", "s390x-linux-musl"),
    Target("Linux ppc64le, musl", "powerpc64le-linux-musl"),
    Target("Linux riscv64, musl", "riscv64-linux-musl"),
    Target("macOS x86_64", "x86_64-macos"),
    Target("macOS arm64", "aarch64-macos"),
    Target("FreeBSD x86_64", "x86_64-freebsd"),
    Target("FreeBSD aarch64", "aarch64-freebsd"),
]


@dataclass(frozen=True)
class Runner:
    """A way to run the C tests: a compiler, the emulator for its programs or "", and the Debian
    packages that have both."""

    name: str
    compiler: tuple[str, ...]
    packages: str
    emulator: str = ""


def emulated(name: str, triple: str, emulator: str) -> Runner:
    return Runner(name, ("zig", "-target", triple, "-static"), "qemu-user", emulator)


RUNNERS = [
    Runner("x86_64, gcc, glibc", ("gcc",), "gcc libc6-dev"),
    Runner("x86_64, clang, glibc", ("clang",), "clang libc6-dev"),
    Runner("i686, gcc -m32, glibc", ("gcc", "-m32"), "gcc-multilib"),
    Runner("x86_64, musl-gcc, musl", ("musl-gcc", "-static"), "musl-tools"),
    emulated("aarch64, musl, qemu", "aarch64-linux-musl", "qemu-aarch64"),
    emulated("s390x (big-endian), musl, qemu", "s390x-linux-musl", "qemu-s390x"),
    emulated("armv7, musl, qemu", "arm-linux-musleabihf", "qemu-arm"),
    emulated("ppc64le, musl, qemu", "powerpc64le-linux-musl", "qemu-ppc64le"),
    emulated("riscv64, musl, qemu", "riscv64-linux-musl", "qemu-riscv64"),
]

COUNTED = [RUNNERS[0], RUNNERS[2], RUNNERS[3]]


@dataclass(frozen=True)
class Outcome:
    what: str
    where: str
    status: str
    detail: str


class Missing(Exception):
    """A tool is missing on this machine. The text names the Debian packages that have it."""


def find_zig() -> list[str]:
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    show_progress("installing zig")
    return [str(make_environment("zig", [ZIG])), "-m", "ziglang", "cc"]


def find_compiler(runner: Runner, zig: list[str]) -> list[str]:
    """Returns the runner's compiler. It is tried first, because gcc accepts -m32 even if the
    libraries for it are missing."""
    name, *options = runner.compiler
    if name == "zig":
        return [*zig, *options]
    found = shutil.which(name)
    if found is None:
        raise Missing(f"no {name}: apt-get install {runner.packages}")
    probe = OUT / "probe.c"
    probe.write_text("#include <errno.h>\nint main(void) { return errno; }\n")
    try:
        run([found, *options, probe, "-o", OUT / "probe"])
    except Failure:
        raise Missing(f"{' '.join(runner.compiler)}: apt-get install {runner.packages}") from None
    return [found, *options]


def find_emulator(runner: Runner) -> list[str]:
    if not runner.emulator:
        return []
    found = shutil.which(runner.emulator) or shutil.which(f"{runner.emulator}-static")
    if found is None:
        raise Missing(f"no {runner.emulator}: apt-get install {runner.packages}")
    return [found]


def compile_core(compiler: list[str], home: Path) -> list[Path]:
    home.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in sorted(CORE.glob("*.c")):
        objects.append(home / f"{source.stem}.o")
        run([*compiler, *FLAGS, "-c", source, "-o", objects[-1]])
    return objects


def compile_target(target: Target, zig: list[str]) -> str:
    """Compiles each source with warnings as errors, and links all of them. No symbol may be
    missing."""
    home = OUT / target.triple
    compiler = [*zig, "-target", target.triple]
    objects = compile_core([*compiler, "-fPIC"], home)
    # The linker of macOS refuses undefined symbols by default.
    strict = [] if "macos" in target.triple else ["-Wl,-z,defs"]
    library = home / "libfdpass.so"
    run([*compiler, "-shared", *strict, *objects, "-o", library])
    return f"{len(objects)} files, no warning; links"


def build_program(compiler: list[str], core: list[Path], program: Path) -> Path:
    binary = core[0].parent / program.stem
    includes = [f"-I{CORE}", f"-I{C_TESTS}"]
    run([*compiler, *PROGRAM_FLAGS, *includes, *core, program, "-pthread", "-o", binary])
    return binary


def make_home(runner: Runner) -> Path:
    return OUT / runner.name.replace(" ", "-").replace(",", "")


def run_tests(runner: Runner, zig: list[str]) -> str:
    compiler = find_compiler(runner, zig)
    emulator = find_emulator(runner)
    programs = sorted(C_TESTS.glob("test_*.c"))
    if not programs:
        raise Failure(f"no test programs in {C_TESTS.relative_to(ROOT)}")
    core = compile_core(compiler, make_home(runner))
    for program in programs:
        binary = build_program(compiler, core, program)
        run([*emulator, binary], cwd=binary.parent, timeout=SECONDS_A_PROGRAM)
    return f"{len(programs)} programs passed"


def count_calls(runner: Runner, zig: list[str]) -> str:
    """Checks that sending a batch of messages, each with a descriptor, takes one system call, and
    receiving it too."""
    compiler = find_compiler(runner, zig)
    strace = shutil.which("strace")
    if strace is None:
        raise Missing("no strace: apt-get install strace")
    core = compile_core(compiler, make_home(runner))
    binary = build_program(compiler, core, ROOT / "tools" / "one_batch.c")
    log = binary.with_suffix(".txt")
    run([strace, "-f", "-qq", "-e", "trace=%network", "-o", log, binary], timeout=60)
    lines = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]
    seen = Counter(line.split("(")[0] for line in lines if "msg(" in line)
    expected = Counter({"sendmmsg": 1, "recvmmsg": 1})
    if seen != expected:
        raise Failure(f"expected one sendmmsg and one recvmmsg, saw {dict(seen)}")
    return "64 messages, 64 descriptors: one sendmmsg, one recvmmsg"


def carry_out(strict: bool) -> list[Outcome]:
    OUT.mkdir(parents=True, exist_ok=True)
    zig = find_zig()
    outcomes = []
    jobs = [
        *[("compiled", target.name, partial(compile_target, target)) for target in COMPILED],
        *[("run", runner.name, partial(run_tests, runner)) for runner in RUNNERS],
        *[("system calls", runner.name, partial(count_calls, runner)) for runner in COUNTED],
    ]
    for number, (what, where, job) in enumerate(jobs, 1):
        show_progress(f"{number}/{len(jobs)} {what}: {where}")
        try:
            outcomes.append(Outcome(what, where, "ok", job(zig)))
        except Missing as error:
            status = "FAILED" if strict else "not run"
            outcomes.append(Outcome(what, where, status, str(error)))
        except Failure as error:
            outcomes.append(Outcome(what, where, "FAILED", str(error)))
    show_progress("")
    return outcomes


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strict", action="store_true", help="a missing tool is a failure")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args()

    outcomes = carry_out(options.strict)
    failed = [outcome for outcome in outcomes if outcome.status == "FAILED"]
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        for outcome in failed:
            print(f"{outcome.what}: {outcome.where}\n{outcome.detail}\n", file=sys.stderr)
        rows = [
            (o.what, o.where, o.status, "see above" if o in failed else o.detail) for o in outcomes
        ]
        print(format_table(("what", "where", "result", "detail"), rows))
        counts = Counter(outcome.status for outcome in outcomes)
        print(f"\n{counts['ok']} ok, {counts['FAILED']} failed, {counts['not run']} not run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
