"""What a change must pass, a session each: `nox -l` lists them, `nox` runs them all."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import nox

nox.options.reuse_venv = "yes"

PROJECT = nox.project.load_toml("pyproject.toml")
STRICT = {"FDPASS_WERROR": "1"}
# What of the repository is no part of the project's source.
NOT_SOURCE = {".ci", ".github", ".gitignore", ".readthedocs.yaml"}
# The least share of the C core's lines that the suite has to reach, in percent.
C_LINES = 95


def install(session: nox.Session, *groups: str) -> None:
    for group in groups:
        session.install(*nox.project.dependency_groups(PROJECT, group))


def run_program(session: nox.Session, name: str) -> None:
    """Runs one of the programs beside the tests, which say what they have tried."""
    install(session, "test")
    session.install("-e", ".", env=STRICT)
    session.chdir("tests")
    session.run("python", "-m", name, *session.posargs)


def unpack_sdist(session: nox.Session) -> Path:
    """The sources as a user gets them, in a folder of the session's own."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder), silent=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder)
    (tree,) = (path.parent for path in folder.glob("*/pyproject.toml"))
    return tree


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and types in the strictest way."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("pyright")
    options = ["--verifytypes", "fdpass_c", "--ignoreexternal"]
    session.run("pyright", *options, env={"PYTHONPATH": "."}, silent=True)


@nox.session
def tests(session: nox.Session) -> None:
    """The suite; what follows -- goes to pytest."""
    install(session, "test")
    session.install("-e", ".", env=STRICT)
    session.run("pytest", *session.posargs)


@nox.session
def threads(session: nox.Session) -> None:
    """What of the suite can run in threads, each test in four at once."""
    install(session, "threads")
    session.install("-e", ".", env=STRICT)
    arguments = ["-p", "support.parallel", "--parallel-threads", "4", "-m", "not thread_unsafe"]
    session.run("pytest", "-q", *arguments, *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def faults(session: nox.Session) -> None:
    """Every system call of every operation fails, with each errno, or is cut short; counts."""
    run_program(session, "faults")


@nox.session
def interrupts(session: nox.Session) -> None:
    """A signal's handler raises before every bytecode of every operation; counts."""
    run_program(session, "interrupts")


@nox.session
def allocations(session: nox.Session) -> None:
    """Python finds no memory at every allocation of every operation; counts."""
    run_program(session, "allocations")


@nox.session
def hostile(session: nox.Session) -> None:
    """Hostile peers against every receiving function; counts."""
    run_program(session, "hostile")


@nox.session
def coverage(session: nox.Session) -> None:
    """The suite, and how much of the Python and of the C core it reaches; too little fails."""
    install(session, "package", "coverage", "peers")
    session.install("setuptools>=77", "cffi>=1.17")
    tree = unpack_sdist(session)
    session.chdir(tree)
    # Also for the C programs that tests compile.
    flags = {"CFLAGS": "--coverage -O0", "PYTHONPATH": str(tree)}
    session.run("python", "setup.py", "build_ext", "--inplace", env=flags, silent=True)
    # Programs that tests start find it too, whatever environment they are given.
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = str(session.run("python", "-c", code, silent=True)).strip()
    Path(site, "fdpass-sources.pth").write_text(f"{tree}\n")
    # The address of a Unix socket has room for 107 bytes: no path in this folder's depths.
    with tempfile.TemporaryDirectory() as short:
        pytest = ["-m", "pytest", "-q", f"--basetemp={short}/pytest", *session.posargs]
        session.run("coverage", "run", *pytest, "-m", "not untraced", env=flags)
        session.run("python", *pytest, "-m", "untraced", env=flags)
        session.run("coverage", "combine", "--quiet", success_codes=[0, 1])
        options = ["--root", ".", "--filter", "csrc/", "--fail-under-line", str(C_LINES)]
        session.run("gcovr", *options, "--txt-summary", "build", short)
    session.run("coverage", "report")


@nox.session
def sdist(session: nox.Session) -> None:
    """The sdist with all that is tracked, and the one wheel out of it, into dist/."""
    install(session, "package")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", silent=True)
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    (archive,) = Path("dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {Path(name).relative_to(Path(name).parts[0]) for name in file.getnames()}
    listed = subprocess.run(["git", "ls-files"], stdout=subprocess.PIPE, text=True, check=True)
    tracked = {Path(name) for name in listed.stdout.splitlines()}
    missing = {path for path in tracked - packed if path.parts[0] not in NOT_SOURCE}
    if missing:
        session.error(f"not in the sdist: {sorted(map(str, missing))}")
    if not [*Path("dist").glob("*-cp310-abi3-*.whl")]:
        session.error("the wheel is not for all CPythons from 3.10 on")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, into site/; a broken link or an undocumented parameter fails."""
    install(session, "docs")
    session.install("-e", ".", env=STRICT)
    # Material's notice about the future of MkDocs says nothing of these pages.
    session.run("mkdocs", "build", *session.posargs, env={"NO_MKDOCS_2_WARNING": "true"})


@nox.session(default=False)
def shell_files(session: nox.Session) -> None:
    """Writes share/, the completions and the manual page, anew; for a change of the commands."""
    install(session, "shell")
    session.install("-e", ".", env=STRICT)
    session.run("python", "tools/shell_files.py")


@nox.session
def frozen(session: nox.Session) -> None:
    """A program frozen by PyInstaller runs."""
    install(session, "freeze")
    session.install("-e", ".", env=STRICT)
    session.run("pytest", "-q", "tests/test_frozen.py")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """The benchmarks run; their figures mean nothing here."""
    install(session, "test")
    session.install("-e", ".", env=STRICT)
    session.run("python", "-m", "benchmarks", "--quick")
    session.run("python", "-m", "benchmarks", "pool", "--quick")
