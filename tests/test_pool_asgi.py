"""An ASGI application in a pool, behind uvicorn's protocols."""

import contextlib
import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.processes import FDPASS
from support.server import Server
from support.sockets import read_all

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.thread_unsafe

needs_httptools = pytest.mark.skipif(not find_spec("httptools"), reason="no httptools")
needs_uvloop = pytest.mark.skipif(not find_spec("uvloop"), reason="no uvloop")
protocols = pytest.mark.parametrize(
    ("protocol", "loop"),
    [
        ("h11", "asyncio"),
        pytest.param("httptools", "asyncio", marks=needs_httptools),
        pytest.param("h11", "uvloop", marks=needs_uvloop),
    ],
)


def serve(protocol: str = "h11", loop: str = "asyncio", workers: int = 2, **options: str) -> Server:
    """A pool of support.asgi_app; options of uvicorn."""
    words = [f"{name}={value}" for name, value in options.items()]
    return Server(
        program=(
            "pool_programs.py",
            "asgi",
            str(workers),
            f"http={protocol}",
            f"loop={loop}",
            *words,
        )
    )


def get(client: http.client.HTTPConnection, path: str = "/") -> list[str]:
    client.request("GET", path)
    answer = client.getresponse()
    assert answer.status == 200
    return answer.read().decode().split()


def connect(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)


def begin(server: Server, stack: ExitStack) -> socket.socket:
    """A connection whose request has no end yet, and whose answer has begun."""
    sock = stack.enter_context(server.connect())
    sock.sendall(b"POST / HTTP/1.1\r\nHost: pool\r\nContent-Length: 5\r\n\r\n")
    answer = b""
    while b"started" not in answer:
        answer += sock.recv(1000)
    return sock


@protocols
def test_even_use(protocol: str, loop: str) -> None:
    """Open connections are spread evenly, and each stays with its worker for all its requests. An
    answer has uvicorn's headers, the date one of them."""
    with serve(protocol, loop, workers=3) as server:
        pids = server.settled(3).pids
        with ExitStack() as stack:
            clients = [stack.enter_context(contextlib.closing(connect(server))) for _ in range(12)]
            first = [get(client) for client in clients]
            assert Counter(int(words[0]) for words in first) == dict.fromkeys(pids, 4)
            assert {(*words[1:],) for words in first} == {("started", "http", "done")}
            for _ in range(3):
                assert [get(client) for client in clients] == first
            assert [worker.in_hand for worker in server.status().workers] == [4, 4, 4]
            clients[0].request("GET", "/")
            answer = clients[0].getresponse()
            answer.read()
            assert answer.headers["server"] == "uvicorn"
            assert answer.headers["date"].endswith("GMT")
        status = server.settled(3)
        assert (status.handled, status.failed, status.lost) == (12, 0, 0)
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("protocol", "loop", "signum"),
    [
        ("h11", "asyncio", signal.SIGTERM),
        ("h11", "asyncio", signal.SIGHUP),
        pytest.param("httptools", "asyncio", signal.SIGTERM, marks=needs_httptools),
        pytest.param("h11", "uvloop", signal.SIGTERM, marks=needs_uvloop),
    ],
)
def test_leaving(protocol: str, loop: str, signum: int) -> None:
    """A worker that is to leave closes idle connections at once, finishes the answers that it has
    begun, and answers a request that comes on a connection on which none has come yet; each of
    those is then closed."""
    with serve(protocol, loop, workers=1, drain="10000") as server, ExitStack() as stack:
        (old,) = server.settled(1).pids
        idle = stack.enter_context(server.connect())
        idle.sendall(b"GET / HTTP/1.1\r\nHost: pool\r\n\r\n")
        answer = b""
        while b"done" not in answer:
            answer += idle.recv(1000)
        begun = begin(server, stack)
        silent = stack.enter_context(server.connect())
        while server.status().workers[0].in_hand < 3:
            pass
        server.send_signal(signum)
        while idle.recv(1000):  # The end of a body in chunks, and of the connection.
            pass
        silent.sendall(b"GET / HTTP/1.1\r\nHost: pool\r\n\r\n")
        answer = read_all(silent)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert str(old).encode() in answer
        assert b"connection: close" in answer.lower()
        begun.sendall(b"12345")
        assert b"done" in read_all(begun)
        if signum == signal.SIGTERM:
            assert server.process.wait() == 0
        else:
            assert server.settled(1).pids != [old]
            assert server.stop() == 0
        assert "WARNING" not in server.log


def test_leaving_silent_connections() -> None:
    """A connection on which nothing has come is closed after a time."""
    with serve(workers=1, drain="10000", timeout_keep_alive="1") as server:
        with server.connect() as silent:
            while not server.status().workers[0].in_hand:
                pass
            server.send_signal(signal.SIGTERM)
            assert read_all(silent) == b""
        assert server.process.wait() == 0


def test_reload_under_load() -> None:
    """Reload after reload, and every request is answered."""
    with serve() as server:
        for _ in range(5):
            server.send_signal(signal.SIGHUP)
            for _ in range(20):
                with contextlib.closing(connect(server)) as client:
                    assert get(client)[-1] == "done"
        assert server.settled(2).lost == 0
        assert server.stop() == 0


def test_lifespan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application starts in each worker before the first request, and stops after the last."""
    notes = tmp_path / "notes"
    monkeypatch.setenv("ASGI_NOTES", str(notes))
    with serve(workers=2) as server:
        server.settled(2)
        assert notes.read_text().splitlines() == ["startup"] * 2
        with ExitStack() as stack:
            begun = begin(server, stack)
            server.send_signal(signal.SIGTERM)
            while len(server.status().workers) > 1:
                pass
            assert notes.read_text().splitlines() == ["startup"] * 2 + ["shutdown"]
            begun.sendall(b"12345")
            assert b"done" in read_all(begun)
        assert server.process.wait() == 0
    assert notes.read_text().splitlines()[2:] == ["shutdown"] * 2


def test_an_application_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers have died at start."""
    monkeypatch.setenv("ASGI_FAILS", "yes")
    with serve() as server:
        server.wait_for("no start today")
        server.wait_for("PoolError: 5 workers in a row died before they began a connection")
        assert server.process.wait() == 1


def test_web_sockets() -> None:
    """A WebSocket is a connection in hand for as long as it is open, and is told that its worker
    leaves."""
    client = pytest.importorskip("websockets.sync.client")
    exceptions = pytest.importorskip("websockets.exceptions")
    with serve(workers=1) as server:
        server.settled(1)
        with (
            server.connect() as sock,
            client.connect("ws://pool/", sock=sock, compression=None) as talk,
        ):
            talk.send("hello")
            assert talk.recv() == "hello"
            assert server.status().workers[0].in_hand == 1
            server.send_signal(signal.SIGHUP)
            with pytest.raises(exceptions.ConnectionClosed) as caught:
                talk.recv()
            assert caught.value.rcvd.code == 1012  # Service restart.
        assert server.settled(1).lost == 0
        assert server.stop() == 0


def make_certificate(tmp_path: Path) -> tuple[str, str]:
    """Returns the paths of a key and of a certificate for "pool"."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=pool", "-addext", "subjectAltName=DNS:pool"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return str(key), str(certificate)


def test_a_slow_handshake(tmp_path: Path) -> None:
    """The date is right although there was no HTTP connection for seconds before."""
    key, certificate = make_certificate(tmp_path)
    with serve(workers=1, ssl_keyfile=key, ssl_certfile=certificate) as server:
        context = ssl.create_default_context(cafile=certificate)
        sock = server.connect()
        sock.settimeout(3)
        with pytest.raises(TimeoutError):
            sock.recv(1)  # The server waits for the handshake.
        sock.settimeout(30)
        before = int(time.time())
        with contextlib.closing(http.client.HTTPConnection("pool")) as client:
            client.sock = context.wrap_socket(sock, server_hostname="pool")
            client.request("GET", "/")
            date = client.getresponse().headers["date"]
        assert parsedate_to_datetime(date).timestamp() >= before - 1
        assert server.stop() == 0


def test_tls(tmp_path: Path) -> None:
    """Workers end TLS where they are given a certificate; what is no TLS is closed."""
    key, certificate = make_certificate(tmp_path)
    with serve(workers=1, ssl_keyfile=key, ssl_certfile=certificate) as server:
        context = ssl.create_default_context(cafile=certificate)
        for _ in range(2):
            sock = server.connect()
            with contextlib.closing(http.client.HTTPConnection("pool")) as client:
                client.sock = context.wrap_socket(sock, server_hostname="pool")
                assert get(client)[2] == "https"
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"200" not in read_all(sock)
        status = server.settled(1)
        assert (status.handled, status.failed) == (3, 0)
        assert "Traceback" not in server.log
        assert server.stop() == 0


@pytest.mark.parametrize(("option", "dated"), [({}, True), ({"date_header": ""}, False)])
def test_the_date(option: "dict[str, str]", dated: bool) -> None:
    """It is in every answer, unless an option of uvicorn says otherwise."""
    with serve(workers=1, **option) as server, contextlib.closing(connect(server)) as client:
        client.request("GET", "/")
        answer = client.getresponse()
        assert answer.read()
        assert ("Date" in answer.headers) == dated


def test_command_line() -> None:
    """fdpass pool --asgi MODULE:APP."""
    program = (*FDPASS[3:], "pool", "--asgi", "--workers", "2", "support.asgi_app:app")
    with Server(program=program) as server:
        with contextlib.closing(connect(server)) as client:
            assert get(client)[-1] == "done"
        assert server.stop() == 0


def test_without_uvicorn() -> None:
    """The command says what to install."""
    code = "import sys; sys.modules['uvicorn'] = None; from fdpass_c.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "pool", "--asgi", "support.asgi_app:app", "127.0.0.1:0"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'fdpass-c[uvicorn]'" in done.stderr
