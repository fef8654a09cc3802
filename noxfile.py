"""What a change must pass, a session each: `nox -l` lists them, `nox` runs them all."""

import json
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
def pool_faults(session: nox.Session) -> None:
    """Every kind of system call fails in a pool's master, and in a worker; counts."""
    run_program(session, "faults.pools")


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


@nox.session(default=False)
def stateful(session: nox.Session) -> None:
    """Random operations on both ends of a channel, blocking and in loops, against a model."""
    install(session, "peers")
    run_program(session, "stateful")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """libFuzzer, with sanitizers, over each decoder; -- --seconds N for each, 60 unless said."""
    run_program(session, "fuzz")


@nox.session(default=False)
def mixed(session: nox.Session) -> None:
    """Everything at once for two minutes: clients of two kinds, two servers, some are killed,
    suspended and interrupted; -- --seconds N for longer."""
    install(session, "test", "benchmarks")
    session.install("-e", ".", env=STRICT)
    session.run("python", "-m", "benchmarks", "mixed", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """A million descriptors each way, and a million connections to each pool, with workers killed:
    nothing is left behind. About half an hour."""
    install(session, "test", "benchmarks")
    session.install("-e", ".", env=STRICT)
    session.run("python", "-m", "benchmarks", "soak", *session.posargs)
    no_limits = ["--timeout=0", "-o", "faulthandler_timeout=0"]
    many = {"FDPASS_POOL_CONNECTIONS": "1000000"}
    session.run("pytest", "tests/test_pool_death.py", "-k", "random_kills", *no_limits, env=many)


@nox.session(default=False)
def sanitizers(session: nox.Session) -> None:
    """The suite, with the extension built under the address and undefined-behaviour sanitizers."""
    install(session, "package", "test")
    tree = unpack_sdist(session)
    flags = "-fsanitize=address,undefined"
    careful = "-g -fno-sanitize-recover=all -fno-omit-frame-pointer"
    session.install(str(tree), env={"CC": "gcc", "CFLAGS": f"{careful} {flags}", "LDFLAGS": flags})
    session.chdir(tree)
    command = ["gcc", "-print-file-name=libasan.so"]
    library = str(session.run(*command, external=True, silent=True)).strip()
    # CPython itself leaks at exit by design; the tests count descriptors themselves. One asks for
    # more memory than there is, which must be NULL and not the end.
    options = "detect_leaks=0:allocator_may_return_null=1"
    environment = {"LD_PRELOAD": library, "ASAN_OPTIONS": options}
    # What was freed is kept for a while, to find its use, and this one sees the memory grow.
    of_memory = "tests/test_pool_death.py::test_random_kills"
    without = f"{options}:quarantine_size_mb=0:thread_local_quarantine_size_kb=0"
    # The core's own programs bring their sanitizers. curl hangs with the preload, groff fails with
    # it, another preload would have to come first, scripts of the documentation start compilers and
    # servers that do not need it, and the benchmarks have no core in this tree.
    left_out = [of_memory, "tests/test_examples.py::test_http_server_and_curl"]
    left_out += ["tests/test_completions.py::test_manual_page"]
    left_out += ["tests/test_faults.py"]
    left_out += [f"tests/test_documentation.py::test_{name}" for name in ("scripts", "figures")]
    own = [f"--ignore=tests/{name}.py" for name in ("test_c_core", "test_fuzzing")]
    # The address of a Unix socket has room for 107 bytes: no path in this folder's depths.
    with tempfile.TemporaryDirectory() as short:
        pytest = ["python", "-m", "pytest", "-q", f"--basetemp={short}/pytest"]
        most = [*own, *(f"--deselect={name}" for name in left_out)]
        session.run(*pytest, *most, *session.posargs, env=environment)
        session.run(*pytest, of_memory, env={**environment, "ASAN_OPTIONS": without})


@nox.session(default=False, venv_backend="none")
def valgrind(session: nox.Session) -> None:
    """The C tests under valgrind: no invalid access, nothing uninitialized, no memory lost."""
    with tempfile.TemporaryDirectory() as folder:
        # Valgrind has descriptors of its own, which the tests of the table would count.
        for test in sorted({*Path("tests/c").glob("test_*.c")} - {Path("tests/c/test_table.c")}):
            program = str(Path(folder, test.stem))
            sources = [*map(str, Path("csrc").glob("*.c")), str(test)]
            flags = ["-g", "-O1", "-pthread", "-Icsrc", "-DUNDER_VALGRIND"]
            session.run("gcc", *flags, *sources, "-o", program)
            # Fair: or a thread that waits in a loop for another never lets it run.
            options = ["-q", "--fair-sched=yes", "--error-exitcode=9", "--leak-check=full"]
            # Of threads that the C library has not taken down it says "possibly lost".
            options += ["--show-leak-kinds=definite"]
            session.run("valgrind", *options, "--errors-for-leak-kinds=definite", program)


@nox.session(default=False, venv_backend="none")
def analyze(session: nox.Session) -> None:
    """The C core through clang-tidy: its analyzer, and what often is a mistake."""
    not_ours = [
        "bugprone-easily-swappable-parameters",
        # Products of a frame's numbers, which are small.
        "bugprone-implicit-widening-of-multiplication-result",
        # It wants memcpy_s, which no libc here has.
        "clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling",
    ]
    checks = ",".join(["-*", "clang-analyzer-*", "bugprone-*", *(f"-{name}" for name in not_ours)])
    sources = sorted(map(str, Path("csrc").glob("*.c")))
    options = ["--quiet", f"--checks={checks}", "--warnings-as-errors=*"]
    session.run("clang-tidy", *options, *sources, "--", "-std=c11", "-Icsrc")


@nox.session
def coverage(session: nox.Session) -> None:
    """The suite, and how much of the Python and of the C core it reaches; too little fails."""
    install(session, "package", "coverage", "peers", "documented")
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


# Python 3.13: before 3.12 the collector runs inside ContextVar.set, which mutmut's trampolines
# call, in finalisers too. That ends in a crash.
@nox.session(default=False, python="3.13")
def mutants(session: nox.Session) -> None:
    """Changes the modules below pool and commands, one place at a time, and lists the changes that
    no test notices, some hours; -- "fdpass_c.sending.*" for some. It does not see which functions a
    test runs in a child: a change that only such a test would notice is listed too."""
    install(session, "package", "mutants")
    session.install("setuptools>=77", "cffi>=1.17")
    tree = unpack_sdist(session)
    session.chdir(tree)
    session.run("python", "setup.py", "build_ext", "--inplace", env=STRICT, silent=True)
    log = tree / "mutmut.txt"
    session.log(f"The progress is in {log}")
    # The address of a Unix socket has room for 107 bytes: no path in this folder's depths.
    short = {"TMPDIR": tempfile.gettempdir()}
    with log.open("w") as file:
        command = ["mutmut", "run", *session.posargs]
        session.run(*command, env=short, stdout=file, stderr=subprocess.STDOUT)
    # With names of some, all others are listed as well.
    listed = str(session.run("mutmut", "results", silent=True)).splitlines()
    session.log("\n".join(line for line in listed if not line.endswith("not checked")))
    session.run("mutmut", "export-cicd-stats", silent=True)
    counts = json.loads(Path("mutants", "mutmut-cicd-stats.json").read_text())
    survived = counts["survived"] + counts["no_tests"]
    killed = sum(counts[how] for how in ("killed", "timeout", "suspicious", "segfault"))
    session.log(f"{killed} mutants killed, {survived} survived")


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
    session.run("python", "-m", "benchmarks", "mixed", "--seconds", "5")
    session.run("python", "-m", "benchmarks", "pool", "--quick")
