"""The public names are complete and documented, and the stub tells the truth about the C core."""

import ast
import inspect
import pydoc
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest

import fdpass_c
import fdpass_c.aio
from fdpass_c._native import ffi, lib

HEADER = Path(__file__).parents[1] / "csrc" / "fdpass_api.h"
STUB = Path(fdpass_c.__file__).with_name("_native.pyi")
FUNCTIONS = sorted(name for name in dir(lib) if callable(getattr(lib, name)))


def test_all_is_sorted() -> None:
    """__all__ names each once: constants, then classes, then functions, each in order."""

    def rank(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), name.islower(), name

    assert fdpass_c.__all__ == sorted(set(fdpass_c.__all__), key=rank)


def test_all_is_complete() -> None:
    """__all__ names whatever a user finds in the package that is not a module."""
    found = {
        name
        for name, value in vars(fdpass_c).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert found == set(fdpass_c.__all__)


def shown(kind: type) -> Iterator[tuple[str, object]]:
    """What help() shows of a class, as far as it is this package's: names, and where each is."""
    for name, _, owner, value in inspect.classify_class_attrs(kind):
        if owner.__module__.startswith("fdpass_c") and pydoc.visiblename(name):
            yield name, value


# How Python describes classes and slots to itself.
NOT_DESCRIBED = {"__abstractmethods__", "__annotations__", "__match_args__", "__orig_bases__"}


@pytest.mark.parametrize("package", [fdpass_c, fdpass_c.aio])
def test_docstrings(package: ModuleType) -> None:
    """Whatever help() shows has a docstring. Attributes may have theirs in that of the class."""
    without = []
    for name in package.__all__:
        if name.isupper():
            continue
        value = getattr(package, name)
        described = {name: value}
        if inspect.isclass(value):
            _, _, attributes = (value.__doc__ or "").partition("Attributes:")
            described |= {
                f"{name}.{attribute}": thing
                for attribute, thing in shown(value)
                if attribute not in NOT_DESCRIBED and f"    {attribute}: " not in attributes
            }
        without += [called for called, thing in described.items() if not inspect.getdoc(thing)]
    assert without == []


def test_names_of_a_channel() -> None:
    """A blocking one shows what one of an event loop has, its timeout, and nothing internal."""
    blocking, looped = (
        {name for name in dir(kind) if not name.startswith("_")}
        for kind in (fdpass_c.Channel, fdpass_c.aio.Channel)
    )
    assert looped - blocking == {"adopt", "wait_for_room"}
    assert blocking - looped == {"gettimeout", "settimeout", "setblocking"}


@pytest.mark.parametrize("name", ["Channel", "Channel.pair", "Channel.connect", "Listener"])
def test_options_are_named(name: str) -> None:
    """Where a channel of an event loop takes options, help() shows the same ones as of a blocking
    one, each with its type and default."""
    blocking, looped = (
        inspect.signature(attrgetter(name)(package)).parameters
        for package in (fdpass_c, fdpass_c.aio)
    )
    wanted = {option: parameter for option, parameter in blocking.items() if option != "timeout"}
    assert {"max_payload", "max_fds", "allow_uids", "receive_fds"} <= {*wanted}
    assert dict(looped) == wanted


def test_max_fds() -> None:
    """The constant of the package is that of the C core."""
    assert lib.FDP_MAX_FDS == fdpass_c.MAX_FDS


def stub_of_lib() -> ast.ClassDef:
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == "_Lib":
            return node
    raise AssertionError(f"no class _Lib in {STUB}")


def stub_functions() -> dict[str, list[str]]:
    """The functions of the stub with their parameters' names."""
    return {
        node.name: [argument.arg for argument in node.args.args[1:]]
        for node in stub_of_lib().body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.thread_unsafe
def test_stub_names_what_is_compiled() -> None:
    """The stub has exactly the functions and constants of the compiled core."""
    constants = {
        node.target.id
        for node in stub_of_lib().body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert set(stub_functions()) == set(FUNCTIONS)
    assert constants == set(dir(lib)) - set(FUNCTIONS)


@pytest.mark.thread_unsafe
def test_stub_has_the_parameters_of_the_compiled() -> None:
    """Each function of the stub has as many parameters as the compiled one."""
    compiled = {name: len(ffi.typeof(getattr(lib, name)).args) for name in FUNCTIONS}
    assert {name: len(names) for name, names in stub_functions().items()} == compiled


@pytest.mark.thread_unsafe
def test_stub_has_the_parameters_of_the_header() -> None:
    """Each function of the stub has the header's parameters, by name and in order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    declared = {
        name: re.findall(r"(?!void\b)\b(\w+)(?:\[\w*\])?\s*(?:,|$)", parameters)
        for name, parameters in re.findall(r"\b(fdp_\w+)\(([^()]*)\);", text)
    }
    assert stub_functions() == declared


def test_package_is_typed() -> None:
    """The marker that tells type checkers to look at the package is installed."""
    assert STUB.with_name("py.typed").exists()
