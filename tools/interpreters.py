"""Runs the whole test suite under interpreters that few machines have, each in a chroot.

    sudo python3 tools/interpreters.py                  # all, and prints a line for each
    sudo python3 tools/interpreters.py i386 pypy3.11    # these
    sudo python3 tools/interpreters.py 3.14 -- -k fork  # arguments after -- are for pytest

It must run as root on Linux x86_64, and needs debootstrap. The chroots are Debian systems from the
default mirror: bookworm for i386, sid for all others. They stay in build/interpreters/ for the next
run. Debian has no package of a free-threaded CPython, so that is built from Debian's source
package, or from the folder that CPYTHON_SOURCE names. pip downloads its packages outside of the
chroots, with the configuration of this machine.
"""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from wheel import read_group
from workshop import BUILD, ROOT, Failure, make_environment, run, show_progress

OUT = BUILD / "interpreters"
WHEELS = OUT / "wheels"
SECONDS_A_STEP = 3600
COMPILING = ["gcc", "libc6-dev", "libffi-dev"]
# Packages to build a CPython, with the modules that pip and the suite need.
BUILDING = ("make", "dpkg-dev", "libssl-dev", "zlib1g-dev", "libbz2-dev", "liblzma-dev")
# Packages in pure Python that the suite needs in addition to the dependency group test.
INSIDE = ["pytest-run-parallel", "trio>=0.25"]
BUILT = "/opt/cpython/bin/python3"
PARALLEL = ("-p", "support.parallel", "--parallel-threads", "4", "-m", "not thread_unsafe")


@dataclass(frozen=True)
class Interpreter:
    """An interpreter: its command, its Debian packages, and the system in which it runs."""

    name: str
    command: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    suite: str = "sid"
    arch: str = "amd64"

    @property
    def root(self) -> Path:
        return OUT / f"{self.suite}-{self.arch}"


INTERPRETERS = [
    Interpreter("i386", "python3", ("python3-dev", "python3-venv"), (), "bookworm", "i386"),
    Interpreter("pypy3.11", "pypy3.11", ("pypy3-dev", "pypy3-venv")),
    Interpreter("3.14", "python3.14", ("python3.14-dev", "python3.14-venv")),
    Interpreter("3.15", "python3.15", ("python3.15-dev", "python3.15-venv")),
    Interpreter("3.14t", BUILT, BUILDING),
    Interpreter("3.14t-threads", BUILT, BUILDING, PARALLEL),
]


def run_inside(interpreter: Interpreter, script: str, *arguments: str) -> str:
    """Runs a shell script in the chroot. Its mounts are in a namespace, which ends with it."""
    mount = 'mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    personality = "linux32" if interpreter.arch == "i386" else "linux64"
    outside = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", mount]
    inside = [personality, "sh", "-euc", script, "sh", *arguments]
    return run(
        [*outside, interpreter.root, *inside],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
        timeout=SECONDS_A_STEP,
    )


def make_system(interpreter: Interpreter) -> None:
    root = interpreter.root
    made = root / "made"
    if not made.exists():
        shutil.rmtree(root, ignore_errors=True)
        run(
            [
                "debootstrap",
                f"--arch={interpreter.arch}",
                "--variant=minbase",
                interpreter.suite,
                root,
            ]
        )
        sources = root / "etc" / "apt" / "sources.list"
        lines = sources.read_text()
        sources.write_text(lines + lines.replace("deb ", "deb-src ", 1))
        made.touch()
    run_inside(
        interpreter,
        # The check of the date is off, because a mirror may be some days old. The signature is
        # still checked.
        "apt-get -q -o Acquire::Check-Valid-Until=false update; "
        'DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"',
        *COMPILING,
        *interpreter.packages,
    )


def build_python(interpreter: Interpreter) -> None:
    source = interpreter.root / "usr" / "src" / "cpython"
    shutil.rmtree(source, ignore_errors=True)
    if given := os.environ.get("CPYTHON_SOURCE"):
        shutil.copytree(given, source, symlinks=True)
    else:
        run_inside(
            interpreter, "cd /usr/src; apt-get -q source python3.14; mv python3.14-*/ cpython"
        )
    run_inside(
        interpreter,
        "cd /usr/src/cpython; ./configure -q --disable-gil --prefix=/opt/cpython; "
        "make -s -j2; make -s install",
    )


def fetch_wheels() -> None:
    """Downloads what pip installs. It is the same for every Python, except cffi, which each Python
    compiles from source."""
    python = make_environment("interpreters", [])
    pip: list[str | Path] = [python, "-m", "pip", "download", "-q", "--dest", WHEELS]
    pure = ["--only-binary=:all:", "--platform=any", "--python-version=3.11"]
    shutil.rmtree(WHEELS, ignore_errors=True)
    run([*pip, *pure, *read_group("test"), *INSIDE, "setuptools>=77", "pycparser"])
    run([*pip, "--no-deps", "--no-binary=cffi", "cffi>=2"])


def copy_source(interpreter: Interpreter) -> None:
    """Copies the files that git tracks, with their current contents."""
    home = interpreter.root / "source"
    shutil.rmtree(home, ignore_errors=True)
    for name in run(["git", "ls-files"], cwd=ROOT).splitlines():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, home / name)
    shutil.copytree(WHEELS, home / "wheels")


def run_suite(interpreter: Interpreter, arguments: list[str]) -> str:
    show_progress(f"{interpreter.name}: system")
    make_system(interpreter)
    if interpreter.command == BUILT and not (interpreter.root / BUILT.lstrip("/")).exists():
        show_progress(f"{interpreter.name}: building CPython")
        build_python(interpreter)
    show_progress(f"{interpreter.name}: tests")
    copy_source(interpreter)
    tools = shlex.join([*read_group("test"), *INSIDE])
    output = run_inside(
        interpreter,
        # The folder fdpass_c is removed, so that the tests import the installed package.
        '"$1" -m venv --clear /venv; shift; cd /source; '
        "export FDPASS_WERROR=1 PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels PYTHONPATH=tests; "
        f"/venv/bin/pip install -q setuptools {tools} .; "
        "rm -r fdpass_c; "
        '/venv/bin/python -m pytest -q -p no:cacheprovider "$@"; '
        "/venv/bin/python -c 'import platform as p, sys; "
        "print(p.python_implementation(), *sys.version.split()[:1])'",
        interpreter.command,
        *interpreter.arguments,
        *arguments,
    )
    *_, summary, version = output.strip().splitlines()
    return f"{version}: {summary.strip('= ')}"


def main() -> int:
    assert __doc__ is not None
    names = {interpreter.name for interpreter in INTERPRETERS}
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    asked = {*sys.argv[1:end]} or names
    if not asked <= names or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print(f"{__doc__}\nThe names: {', '.join(sorted(names))}.", file=sys.stderr)
        return 2

    status = 0
    fetch_wheels()
    for interpreter in INTERPRETERS:
        if interpreter.name not in asked:
            continue
        try:
            result = run_suite(interpreter, sys.argv[end + 1 :])
        except Failure as error:
            status = 1
            result = f"FAILED\n{error}"
        show_progress("")
        print(f"{interpreter.name}: {result}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
