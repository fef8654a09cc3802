"""A free-threaded interpreter stays one."""

import subprocess
import sys
import sysconfig

import pytest


@pytest.mark.thread_unsafe
@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has a GIL"
)
def test_no_gil() -> None:
    """Importing the whole package does not switch the GIL on, which Python would warn of."""
    text = (
        "import sys, fdpass_c.__main__, fdpass_c.pool; "
        "assert fdpass_c._native.lib.FDP_BATCH; print(sys._is_gil_enabled())"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True)
    assert (done.stdout, done.stderr) == (b"False\n", b"")
