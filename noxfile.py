"""The checks that a change must pass, one in each session: `nox -l` lists them, `nox` runs them."""

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
# Files of the repository that need not be in the sdist.
NOT_SOURCE = {".ci", ".github", ".gitignore", ".readthedocs.yaml"}
# The least share of the C core's lines that the suite must execute, in percent.
C_LINES = 95


def install(session: nox.Session, *groups: str) -> None:
    for group in groups:
        session.install(*nox.project.dependency_groups(PROJECT, group))


def run_program(session: nox.Session, name: str) -> None:
    """Runs one of the programs in tests/, each of which prints how many cases it has tried."""
    install(session, "test")
    session.install("-e", ".", env=STRICT)
    session.chdir("tests")
    session.run("python", "-m", name, *session.posargs)


def unpack_sdist(session: nox.Session) -> Path:
    """Builds the sdist and unpacks it in a folder of the session. Returns the path of the
    sources."""
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
    """Checks the style, and the types with the strictest settings."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("pyright")
    options = ["--verifytypes", "fdpass_c", "--ignoreexternal"]
    session.run("pyright", *options, env={"PYTHONPATH": "."}, silent=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the test suite. Arguments after -- are for pytest."""
    install(session, "test")
    session.install("-e", ".", env=STRICT)
    session.run("pytest", *session.posargs)


@nox.session
def threads(session: nox.Session) -> None:
    """Runs the tests that can run in threads, each in four threads at once."""
    install(session, "threads")
    session.install("-e", ".", env=STRICT)
    arguments = ["-p", "support.parallel", "--parallel-threads", "4", "-m", "not thread_unsafe"]
    session.run("pytest", "-q", *arguments, *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def faults(session: nox.Session) -> None:
    """Makes every system call of every operation fail, with each errno, or transfer only a part."""
    run_program(session, "faults")


@nox.session
def pool_faults(session: nox.Session) -> None:
    """Makes every kind of system call fail in a pool's master, and in a worker."""
    run_program(session, "faults.pools")


@nox.session
def interrupts(session: nox.Session) -> None:
    """Lets a signal handler raise an exception before every bytecode of every operation."""
    run_program(session, "interrupts")


@nox.session
def allocations(session: nox.Session) -> None:
    """Makes every allocation of every operation fail in Python, one at a time."""
    run_program(session, "allocations")


@nox.session
def hostile(session: nox.Session) -> None:
    """Attacks every receiving function with hostile peers, also under asyncio and trio."""
    install(session, "peers")
    run_program(session, "hostile")


@nox.session(default=False)
def stateful(session: nox.Session) -> None:
    """Compares random operations on both ends of a channel, in every loop, with a model."""
    install(session, "peers")
    run_program(session, "stateful")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Runs libFuzzer, with sanitizers, on each decoder, for 60 seconds or -- --seconds N."""
    run_program(session, "fuzz")


@nox.session(default=False)
def mixed(session: nox.Session) -> None:
    """Runs two servers and many clients of two kinds for two minutes, while clients are killed,
    suspended and interrupted. -- --seconds N runs longer."""
    install(session, "test", "benchmarks")
    session.install("-e", ".", env=STRICT)
    session.run("python", "-m", "benchmarks", "mixed", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Passes a million descriptors in each way, and makes a million connections to each pool while
    workers are killed. Nothing may leak. Takes about half an hour."""
    install(session, "test", "benchmarks")
    session.install("-e", ".", env=STRICT)
    session.run("python", "-m", "benchmarks", "soak", *session.posargs)
    no_limits = ["--timeout=0", "-o", "faulthandler_timeout=0"]
    many = {"FDPASS_POOL_CONNECTIONS": "1000000"}
    session.run("pytest", "tests/test_pool_death.py", "-k", "random_kills", *no_limits, env=many)


@nox.session(default=False)
def sanitizers(session: nox.Session) -> None:
    """Runs the test suite with the address and undefined-behaviour sanitizers in the extension."""
    install(session, "package", "test")
    tree = unpack_sdist(session)
    flags = "-fsanitize=address,undefined"
    debug = "-g -fno-sanitize-recover=all -fno-omit-frame-pointer"
    session.install(str(tree), env={"CC": "gcc", "CFLAGS": f"{debug} {flags}", "LDFLAGS": flags})
    session.chdir(tree)
    command = ["gcc", "-print-file-name=libasan.so"]
    library = str(session.run(*command, external=True, silent=True)).strip()
    # CPython itself leaks memory at exit by design. One test allocates more memory than there is,
    # which must return NULL and not end the process.
    options = "detect_leaks=0:allocator_may_return_null=1"
    environment = {"LD_PRELOAD": library, "ASAN_OPTIONS": options}
    # The sanitizer keeps freed memory in a quarantine, to find later uses of it. In the test that
    # measures how memory grows, it must not.
    of_memory = "tests/test_pool_death.py::test_random_kills"
    no_quarantine = f"{options}:quarantine_size_mb=0:thread_local_quarantine_size_kb=0"
    # These tests are left out. curl hangs if the sanitizer is preloaded, and groff fails. The tests
    # of faults preload another library, which would have to come first. Scripts of the
    # documentation start compilers and servers that need no sanitizer, and the benchmarks find no
    # core in this tree. The C programs of test_c_core and test_fuzzing have their own sanitizers.
    left_out = [of_memory, "tests/test_examples.py::test_http_server_and_curl"]
    left_out += ["tests/test_completions.py::test_manual_page"]
    left_out += ["tests/test_faults.py"]
    left_out += [f"tests/test_documentation.py::test_{name}" for name in ("scripts", "figures")]
    own = [f"--ignore=tests/{name}.py" for name in ("test_c_core", "test_fuzzing")]
    # A short path, because the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory() as short:
        pytest = ["python", "-m", "pytest", "-q", f"--basetemp={short}/pytest"]
        most = [*own, *(f"--deselect={name}" for name in left_out)]
        session.run(*pytest, *most, *session.posargs, env=environment)
        session.run(*pytest, of_memory, env={**environment, "ASAN_OPTIONS": no_quarantine})


@nox.session(default=False, venv_backend="none")
def valgrind(session: nox.Session) -> None:
    """Runs the C tests under valgrind: no invalid access, nothing uninitialized, no lost memory, no
    descriptor left open."""
    with tempfile.TemporaryDirectory() as folder:
        # Without test_table, because valgrind has descriptors of its own, which it would count.
        for test in sorted({*Path("tests/c").glob("test_*.c")} - {Path("tests/c/test_table.c")}):
            program = str(Path(folder, test.stem))
            sources = [*map(str, Path("csrc").glob("*.c")), str(test)]
            flags = ["-g", "-O1", "-pthread", "-Icsrc", "-DUNDER_VALGRIND"]
            session.run("gcc", *flags, *sources, "-o", program)
            # With a fair scheduler, a thread that polls for another one lets it run.
            options = ["-q", "--fair-sched=yes", "--error-exitcode=9", "--leak-check=full"]
            # "Possibly lost" is reported for threads that the C library has not freed yet.
            options += ["--show-leak-kinds=definite"]
            options += ["--errors-for-leak-kinds=definite", "--track-fds=yes"]
            said = str(session.run("valgrind", *options, program, silent=True))
            # It lists those of its own and of the caller too.
            listed = said.split("== Open ")[1:]
            if left := [one for one in listed if "<inherited from parent>" not in one]:
                session.error("\n".join(["left open:", *left]))


@nox.session(default=False, venv_backend="none")
def analyze(session: nox.Session) -> None:
    """Checks the C core with the analyzers of clang-tidy and gcc, and for frequent mistakes."""
    disabled = [
        "bugprone-easily-swappable-parameters",
        # The products are of numbers in a frame, which are small.
        "bugprone-implicit-widening-of-multiplication-result",
        # This check asks for memcpy_s, which the C libraries of these systems do not have.
        "clang-analyzer-security.insecureAPI.DeprecatedOrUnsafeBufferHandling",
    ]
    checks = ",".join(["-*", "clang-analyzer-*", "bugprone-*", *(f"-{name}" for name in disabled)])
    sources = sorted(map(str, Path("csrc").glob("*.c")))
    options = ["--quiet", f"--checks={checks}", "--warnings-as-errors=*"]
    flags = ["-std=c11", "-Icsrc"]
    session.run("clang-tidy", *options, *sources, "--", *flags)
    with tempfile.TemporaryDirectory() as folder:
        flags += ["-O2", "-fanalyzer", "-Werror", "-fPIC", "-shared", "-o", f"{folder}/core.so"]
        session.run("gcc", *flags, *sources)


@nox.session
def coverage(session: nox.Session) -> None:
    """Runs the test suite, and fails if it executes too little of the Python code or the C core."""
    install(session, "package", "coverage", "peers", "documented")
    session.install("setuptools>=77", "cffi>=1.17")
    tree = unpack_sdist(session)
    session.chdir(tree)
    # The flags also hold for the C programs that tests compile.
    flags = {"CFLAGS": "--coverage -O0", "PYTHONPATH": str(tree)}
    session.run("python", "setup.py", "build_ext", "--inplace", env=flags, silent=True)
    # With a .pth file, programs that tests start find the package in any environment.
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = str(session.run("python", "-c", code, silent=True)).strip()
    Path(site, "fdpass-sources.pth").write_text(f"{tree}\n")
    # A short path, because the path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory() as short:
        pytest = ["-m", "pytest", "-q", f"--basetemp={short}/pytest", *session.posargs]
        session.run("coverage", "run", *pytest, "-m", "not untraced", env=flags)
        session.run("python", *pytest, "-m", "untraced", env=flags)
        session.run("coverage", "combine", "--quiet", success_codes=[0, 1])
        options = ["--root", ".", "--filter", "csrc/", "--fail-under-line", str(C_LINES)]
        session.run("gcovr", *options, "--txt-summary", "build", short)
    session.run("coverage", "report")


# Python 3.13, because before 3.12 the garbage collector can run inside ContextVar.set. mutmut's
# trampolines call this function in finalizers too, and that ends in a crash.
@nox.session(default=False, python="3.13")
def mutants(session: nox.Session) -> None:
    """Changes the modules below pool and commands, and lists the changes that no test notices.

    It changes one place at a time, and takes some hours; -- "fdpass_c.sending.*" selects some.
    mutmut does not know which functions a test runs in a child, so changes that only such tests
    notice are listed too.
    """
    install(session, "package", "mutants")
    session.install("setuptools>=77", "cffi>=1.17")
    tree = unpack_sdist(session)
    session.chdir(tree)
    session.run("python", "setup.py", "build_ext", "--inplace", env=STRICT, silent=True)
    log = tree / "mutmut.txt"
    session.log(f"The progress is in {log}")
    # A short path, because the path of a Unix socket has at most 107 bytes.
    short = {"TMPDIR": tempfile.gettempdir()}
    with log.open("w") as file:
        command = ["mutmut", "run", *session.posargs]
        session.run(*command, env=short, stdout=file, stderr=subprocess.STDOUT)
    # If some mutants are selected, all others are listed as "not checked".
    listed = str(session.run("mutmut", "results", silent=True)).splitlines()
    session.log("\n".join(line for line in listed if not line.endswith("not checked")))
    session.run("mutmut", "export-cicd-stats", silent=True)
    counts = json.loads(Path("mutants", "mutmut-cicd-stats.json").read_text())
    survived = counts["survived"] + counts["no_tests"]
    killed = sum(counts[how] for how in ("killed", "timeout", "suspicious", "segfault"))
    session.log(f"{killed} mutants killed, {survived} survived")


@nox.session
def sdist(session: nox.Session) -> None:
    """Builds the sdist and the wheel into dist/. All tracked files must be in the sdist."""
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
    """Builds the documentation into site/. Fails at a broken link or an undocumented parameter."""
    install(session, "docs")
    session.install("-e", ".", env=STRICT)
    # Hides a notice of Material about the future of MkDocs, which is not about these pages.
    session.run("mkdocs", "build", *session.posargs, env={"NO_MKDOCS_2_WARNING": "true"})


@nox.session(default=False)
def shell_files(session: nox.Session) -> None:
    """Writes the completions and the manual page in share/ after a change of the commands."""
    install(session, "shell")
    session.install("-e", ".", env=STRICT)
    session.run("python", "tools/shell_files.py")


@nox.session
def frozen(session: nox.Session) -> None:
    """Checks that a program frozen by PyInstaller runs."""
    install(session, "freeze")
    session.install("-e", ".", env=STRICT)
    session.run("pytest", "-q", "tests/test_frozen.py")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Checks that the benchmarks run. Their figures mean nothing here."""
    install(session, "test")
    session.install("-e", ".", env=STRICT)
    session.run("python", "-m", "benchmarks", "--quick")
    session.run("python", "-m", "benchmarks", "mixed", "--seconds", "5")
    session.run("python", "-m", "benchmarks", "pool", "--quick")
