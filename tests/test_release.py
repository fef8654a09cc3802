"""A release whose version, changelog and tag do not agree is refused."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "release.py"

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="the tools are not here")

GOOD = """\
# Changes

## 0.2.0 (2026-03-01)

- New.

## 0.1.0 (2026-02-01)

- The first version.
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_agreement(tool: ModuleType) -> None:
    """Nothing is found where all agree, with the tag and without."""
    assert tool.find_problems("0.2.0", GOOD, "v0.2.0", False) == []
    assert tool.find_problems("0.2.0", GOOD, None, False) == []
    unreleased = GOOD.replace("2026-03-01", "unreleased")
    assert tool.find_problems("0.2.0", unreleased, None, True) == []


@pytest.mark.parametrize(
    ("version", "before", "after", "tag", "has_changed", "problem"),
    [
        ("0.2.0", "", "", "v0.3.0", False, "the tag is v0.3.0, and __version__ 0.2.0"),
        ("0.3.0", "", "", None, False, "__version__ is 0.3.0, the first section of the"),
        ("0.2.0", "2026-03-01", "unreleased", "v0.2.0", False, "has no date yet"),
        ("0.2.0", "", "", None, True, "changed since 0.2.0, and the changelog says nothing"),
        ("0.2.0", "0.1.0", "0.10.0", None, False, "not in order"),
        ("0.2.0", "2026-02-01", "unreleased", None, False, "only the first section"),
        ("0.2.0", "- New.\n", "", None, False, "is empty"),
        ("0.2.0", "- The first version.\n", "", None, False, "is empty"),
        ("0.2.0", "(2026-02-01)", "of February", None, False, "is not '## VERSION (YYYY-"),
        ("0.2.0", "## ", "", None, False, "has no section"),
    ],
)
def test_disagreement(
    tool: ModuleType,
    version: str,
    before: str,
    after: str,
    tag: str | None,
    has_changed: bool,
    problem: str,
) -> None:
    """Each disagreement is found, alone, and named."""
    changelog = GOOD.replace(before, after) if before else GOOD
    (found,) = tool.find_problems(version, changelog, tag, has_changed)
    assert problem in found


def test_this_changelog(tool: ModuleType) -> None:
    """The changelog of this tree has its form, and a section for this version."""
    if not (tool.ROOT / "fdpass_c").exists():
        pytest.skip("tests what is installed, without a source tree around it")
    assert tool.main([]) == 0
