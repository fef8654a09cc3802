"""Whatever bytes come, and however sending is cut up: no finding of the sanitizers.

libFuzzer looks for more in `nox -s fuzz`, built by clang.
"""

from pathlib import Path

import pytest

from fuzz.__main__ import FOLDER, TARGETS
from support.c_core import run_sanitized
from support.marks import linux_only


@linux_only
@pytest.mark.thread_unsafe
@pytest.mark.untraced
@pytest.mark.parametrize("target", TARGETS)
def test_for_a_moment(target: str, tmp_path: Path) -> None:
    """The inputs that found most, and some drawn at random, under sanitizers."""
    corpus = sorted(map(str, (FOLDER / "corpus" / target).iterdir()))
    assert corpus
    source = FOLDER / f"fuzz_{target}.c"
    run_sanitized("gcc", tmp_path / target, source, [*corpus, "100"])
