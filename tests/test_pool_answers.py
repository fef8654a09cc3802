"""An answer arrives whole, however late its client reads and whatever it has left unread."""

import os
import select
import signal
import socket
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from fdpass_c._native import lib
from fdpass_c.pool.connected import ConnectedSocket
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.wakeup import Wakeup
from support.handlers import LONG
from support.marks import linux_only
from support.server import Server, connections
from support.sockets import read_all

streams = pytest.mark.parametrize(
    ("handler", "request_line"),
    [
        ("answer_stream", b"close\n"),
        ("answer_stream", b"raise\n"),
        ("answer_by_protocol", b""),
    ],
)


def read_until_reset(sock: socket.socket) -> int:
    """How many bytes come before the connection ends, however it does."""
    count = 0
    try:
        while part := sock.recv(65536):
            count += len(part)
    except ConnectionResetError:
        pass
    return count


def connect_late_reader(server: Server) -> socket.socket:
    """A client for which little is kept that it has not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", server.port))
    return sock


@pytest.mark.thread_unsafe
@streams
def test_a_transport_keeps_its_socket(handler: str, request_line: bytes) -> None:
    """What a transport has taken is not cut when the handler returns; the connection is in hand
    until the transport has closed it."""
    with Server(handler, "--workers", "1", "--capacity", "10") as server:
        with ExitStack() as stack:
            socks = [stack.enter_context(connect_late_reader(server)) for _ in range(10)]
            for sock in socks:
                sock.sendall(request_line or b"x")
            while server.status().workers[0].in_hand < 10:
                pass
            for sock in socks:
                assert read_until_reset(sock) == LONG + (not request_line)
        status = server.settled(1)
        assert (status.handled, status.lost) == (10, 0)
        assert status.failed == (10 if request_line == b"raise\n" else 0)
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("request_line", [b"close\n", b"raise\n"])
def test_a_transport_of_a_unix_socket(request_line: bytes, tmp_path: Path) -> None:
    """asyncio has a function of its own for these."""
    path = f"{tmp_path}/socket"
    server = Server("answer_stream", "--workers", "1", "--capacity", "2", addresses=(path,))
    with server, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(request_line)
        assert read_until_reset(sock) == LONG
        status = server.settled(1)
        assert (status.handled, status.lost) == (1, 0)
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_transport_is_waited_for(signum: int) -> None:
    """A worker that leaves ends only when its transports have sent what they hold."""
    with Server("answer_stream", "--workers", "1", "--capacity", "2") as server:
        with ExitStack() as stack:
            socks = [stack.enter_context(connect_late_reader(server)) for _ in range(2)]
            for sock in socks:
                sock.sendall(b"close\n")
                assert sock.recv(1)
            server.send_signal(signum)
            server.wait_for("stopping" if signum == signal.SIGTERM else "worker .* started")
            for sock in socks:
                assert read_until_reset(sock) == LONG - 1
        if signum == signal.SIGTERM:
            assert server.process.wait() == 0
        else:
            assert server.settled(1).lost == 0
            assert server.stop() == 0


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(100_000))


both_kinds = pytest.mark.parametrize(
    ("handler", "capacity"), [("answer_unread", "1"), ("answer_unread_async", "4")]
)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("handler", "capacity", "family"),
    [("answer_unread", "1", "tcp"), ("answer_unread_async", "4", "unix")],
)
def test_an_unread_request(handler: str, capacity: str, family: str, tmp_path: object) -> None:
    """A request that the handler has not read to its end does not cut the answer."""
    addresses = ("127.0.0.1:0",) if family == "tcp" else (f"{tmp_path}/socket",)
    options = ("--workers", "1", "--capacity", capacity)
    with Server(handler, *options, addresses=addresses) as server:
        for unread in (1, 20_000, 300_000):
            with socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET) as sock:
                sock.connect(addresses[0] if family == "unix" else ("127.0.0.1", server.port))
                # Sent beside the answer, which does not wait for its end.
                sending = threading.Thread(target=sock.sendall, args=[bytes(10 + unread)])
                sending.start()
                assert read_until_reset(sock) == LONG
                sending.join()
        assert server.settled(1).handled == 3
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@both_kinds
def test_a_client_that_never_stops(handler: str, capacity: str) -> None:
    """A client that sends without end is cut off, and then others are served."""
    with Server(handler, "--workers", "1", "--capacity", capacity) as server:
        with server.connect() as sock:
            got = threading.Thread(target=read_until_reset, args=[sock])
            got.start()
            with pytest.raises(OSError, match=r"reset|pipe"):
                send_for_ever(sock)
            got.join()
        with server.connect() as sock:
            sock.sendall(b"request")
            assert read_until_reset(sock) == LONG
        assert server.settled(1).handled == 2


@pytest.mark.thread_unsafe
@linux_only
def test_one_of_many_exits() -> None:
    """A coroutine that exits ends its worker; what the others had begun is lost and counted."""
    with Server("exit_beside_others", "--workers", "1", "--capacity", "10") as server:
        for number, request in enumerate([b"exit", b"call exit"], 1):
            with connections(server, 10) as socks:
                for sock in socks:
                    assert sock.recv(100)
                socks[0].sendall(request)
                server.wait_for("exited with status 3: 10 connections lost")
            status = server.settled(1)
            assert (status.handled, status.lost) == (0, 10 * number)


@pytest.mark.thread_unsafe
def test_one_of_many_is_cancelled() -> None:
    """A coroutine that ends as cancelled has failed, and the others go on."""
    with Server("exit_beside_others", "--workers", "1", "--capacity", "10") as server:
        with connections(server, 2) as (first, second):
            assert first.recv(100) == second.recv(100)
            first.sendall(b"cancel")
            assert read_all(first) == b""
            second.sendall(b"still here")
            assert read_all(second) == b"still here"
        status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (2, 1, 0)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("request_text", [b"closes", b"unread and more", b"stream"])
def test_an_end_that_goes_wrong(request_text: bytes) -> None:
    """However a connection ends after its handler has returned, it ends and is counted once."""
    with Server("end_oddly", "--workers", "1", "--capacity", "1") as server:
        for _ in range(3):
            with server.connect() as sock:
                sock.sendall(request_text)
                assert read_until_reset(sock) == 0
                status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (3, 0, 0)
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_tasks_that_outlive_the_handler() -> None:
    """They wait for a socket that the pool has closed, and the next one with its number works."""
    with Server("leave_tasks", "--workers", "1", "--capacity", "10") as server:
        with server.connect() as first:
            first.sendall(b"leave")
            read_all(first)
        for _ in range(2):
            with server.connect() as sock, sock.makefile("rb") as file:
                while server.status().workers[0].in_hand < 1:
                    pass
                sock.sendall(b"go on")
                assert len(file.read(2**24)) == 2**24
                sock.sendall(b"and on")
                assert file.read() == b"and on"
        assert server.stop() == 0
        assert "Traceback" not in server.log


@pytest.mark.thread_unsafe
def test_a_descriptor_closed_by_a_plain_handler() -> None:
    """A handler that closes the descriptor of its socket ends this connection, not its worker."""
    with Server("close_descriptor", "--workers", "1", "--capacity", "1") as server:
        for _ in range(3):
            with server.connect() as sock:
                sock.sendall(b"closes")
                assert read_until_reset(sock) == 0
                status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (3, 0, 0)
        assert [worker.restarts for worker in status.workers] == [0]
        with server.connect() as sock:
            sock.sendall(b"exit")
            assert read_until_reset(sock) == 0
        server.wait_for("exited with status 7")
        assert server.stop() == 0


@pytest.mark.parametrize("end", ["close", "detach", "makefile", "with"])
def test_an_early_end_wakes_the_master(end: str) -> None:
    """A handler that closes its connection early has the master close its copy, if it has one, for
    only then does the peer see the end."""
    counters = Counters()
    wakeup = Wakeup()
    counters.begin(2)
    try:
        for number, has_copy in ((1, True), (1, False), (2, True)):
            ours, theirs = socket.socketpair()
            sock = ConnectedSocket(fileno=ours.detach())
            sock.on_close = partial(wakeup.wake_for_copy, counters, number)
            with theirs:
                end_connection(sock, end)
            assert bool(select.select([wakeup], [], [], 0)[0]) == has_copy
            if has_copy:
                assert os.read(wakeup.fileno(), 100) == b"\0"
                counters.words[lib.FDP_WORD_RELEASED] = number
    finally:
        wakeup.close()


def end_connection(sock: socket.socket, end: str) -> None:
    if end == "close":
        sock.close()
        sock.close()
    elif end == "detach":
        os.close(sock.detach())
    elif end == "with":
        with sock:
            pass
    else:
        with sock.makefile() as file:
            sock.close()
            assert sock.fileno() >= 0
            assert getattr(sock, "on_close", None) is not None  # Not called yet.
            assert not file.closed
