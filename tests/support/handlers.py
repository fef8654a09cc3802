"""Handlers for the pools that tests run."""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from pathlib import Path
from typing import Any

from fdpass_c._native import lib
from fdpass_c.pool import (
    Pool,
    failed_starts,
    is_leaving,
    leaving,
    leaving_event,
    note_progress,
)


def echo(sock: socket.socket, address: object) -> None:
    """Answers one request with the worker's pid, the peer's address and the request."""
    if request := sock.recv(1000):
        sock.sendall(f"{os.getpid()} {address!r} ".encode() + request)


async def echo_async(sock: socket.socket, address: object) -> None:
    """The same in an event loop."""
    loop = asyncio.get_running_loop()
    if request := await loop.sock_recv(sock, 1000):
        await loop.sock_sendall(sock, f"{os.getpid()} {address!r} ".encode() + request)


def describe(sock: socket.socket, address: object) -> None:
    """Says what the handler was given, and what the kernel knows of it."""
    modes = (sock.gettimeout(), os.get_blocking(sock.fileno()), os.get_inheritable(sock.fileno()))
    with socket.socket(fileno=os.dup(sock.fileno())) as same:  # PyPy makes both blocking.
        known = (same.family.name, same.type.name, same.proto)
    given = (sock.family.name, sock.type.name, sock.proto)
    sock.sendall(repr((given, known, modes, address, sock.getpeername())).encode())


async def describe_async(sock: socket.socket, address: object) -> None:
    """The same in an event loop."""
    describe(sock, address)


class NotAnException(BaseException):
    """As those of test frameworks and of gevent, for which an ordinary except is too narrow."""


def obey(sock: socket.socket, _address: object) -> None:
    """Does what the request says and answers with the worker's pid."""
    request = sock.recv(1000)
    if request == b"raise":
        raise RuntimeError("asked to")
    if request == b"raise more":
        raise NotAnException("asked to")
    if request == b"exit":
        sys.exit(3)
    if request == b"keep open":
        sock.detach()
    sock.sendall(f"{os.getpid()}".encode())
    if request == b"close":
        sock.close()


async def obey_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop."""
    loop = asyncio.get_running_loop()
    request = await loop.sock_recv(sock, 1000)
    if request == b"raise":
        raise RuntimeError("asked to")
    if request == b"raise more":
        raise NotAnException("asked to")
    if request == b"exit":
        sys.exit(3)
    await loop.sock_sendall(sock, f"{os.getpid()}".encode())


def answer_for_ever(sock: socket.socket, _address: object) -> None:
    """Until the client has gone."""
    while True:
        sock.sendall(b"x")


def speak_tls(sock: socket.socket, _address: object) -> None:
    """Fails with a client that does not."""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(sock, server_side=True)


async def answer_for_ever_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop."""
    while True:
        await asyncio.get_running_loop().sock_sendall(sock, b"x")


def leave_an_orphan(sock: socket.socket, _address: object) -> None:
    """Forks a process that outlives its parent, which is another one, and holds the connection."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)  # Until the parent has gone.
        os._exit(0)
    os.close(reader)
    os.close(writer)
    os.waitpid(child, 0)
    sock.sendall(b"left one")


def begin_and_wait(sock: socket.socket, _address: object) -> None:
    """Says at once who has begun, and answers when the client says something."""
    sock.sendall(f"{os.getpid()} ".encode())
    sock.sendall(sock.recv(1000))


def scribble(sock: socket.socket, address: object) -> None:
    """The same, with a count of connections meanwhile that it cannot have finished."""
    words = leaving._ThisWorker.counters.words  # type: ignore[union-attr]
    words[lib.FDP_WORD_HANDLED] = 2**31
    begin_and_wait(sock, address)


def end_room(sock: socket.socket, address: object) -> None:
    """The same, and then this process can open nothing more."""
    begin_and_wait(sock, address)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


async def begin_and_wait_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, f"{os.getpid()} ".encode())
    await loop.sock_sendall(sock, await loop.sock_recv(sock, 1000))


_left_behind: "list[asyncio.Task[Any]]" = []


async def leave_tasks(sock: socket.socket, _address: object) -> None:
    """Ends beside tasks that wait for the client, if it says so. Otherwise reads, writes much, and
    reads once more."""
    loop = asyncio.get_running_loop()
    if await loop.sock_recv(sock, 1000) == b"leave":
        _left_behind.append(loop.create_task(loop.sock_recv(sock, 1000)))
        _left_behind.append(loop.create_task(loop.sock_sendall(sock, bytes(2**24))))
        await asyncio.sleep(0)
    else:
        await loop.sock_sendall(sock, bytes(2**24))
        await loop.sock_sendall(sock, await loop.sock_recv(sock, 1000))


class Callable:
    """An object whose call is a coroutine."""

    async def __call__(self, sock: socket.socket, address: object) -> None:
        await echo_async(sock, address)


echo_object = Callable()
echo_partial = partial(echo_async)
echo_partial_object = partial(partial(Callable()))
echo_bound = Callable().__call__


def hidden_lambda(sock: socket.socket, address: object) -> object:
    """Returns a coroutine, which nobody can know before."""
    return echo_async(sock, address)


@wraps(echo_async)
def hidden_wrapped(*arguments: Any) -> object:
    """A decorator's plain function around a coroutine function."""
    return echo_async(*arguments)


async def hidden_async_generator(sock: socket.socket, address: object) -> AsyncIterator[None]:
    """Runs nothing where it is called."""
    await echo_async(sock, address)
    yield


def hidden_generator(sock: socket.socket, address: object) -> Iterator[None]:
    """The same."""
    echo(sock, address)
    yield


class HiddenAwaitable:
    """What a handler returns, neither a coroutine nor a generator."""

    def __await__(self) -> Iterator[None]:
        yield


def hidden_awaitable(_sock: socket.socket, _address: object) -> object:
    """Returns something to await."""
    return HiddenAwaitable()


def fork_a_child(sock: socket.socket, _address: object) -> None:
    """Has a child that lives until it is killed, and holds all that the worker holds."""
    sock.recv(1000)
    if (pid := os.fork()) == 0:
        while True:
            signal.pause()
    sock.sendall(f"{os.getpid()} {pid}".encode())
    sock.recv(1000)


def _fork(request: bytes) -> bytes:
    """Forks a process that does what the request says, and waits for it. Returns what to answer."""
    if pid := os.fork():
        return b"status %d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if request == b"raise":
        raise RuntimeError("asked to")
    if request == b"exit":
        sys.exit(3)
    return b"from the child, " + (b"leaving, " if is_leaving() else b"")


def fork_and_return(sock: socket.socket, _address: object) -> None:
    """Has a child that returns from the handler too, or raises there."""
    sock.sendall(_fork(sock.recv(1000)))


async def fork_and_return_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop."""
    sock.send(_fork(await asyncio.get_running_loop().sock_recv(sock, 1000)))


def terminate_children(sock: socket.socket, _address: object) -> None:
    """Terminates processes of multiprocessing, at once and as they run, and says how they ended."""
    fork = multiprocessing.get_context("fork")
    codes = []
    for target in (_pause, _exit_upon_term):
        reader, writer = fork.Pipe(duplex=False)
        process = fork.Process(target=target, args=[writer])
        process.start()
        if target is _exit_upon_term:
            reader.recv()
        process.terminate()
        process.join()
        codes.append(process.exitcode)
    sock.sendall(repr(codes).encode())


def _pause(_writer: Any) -> None:
    signal.pause()


def _exit_upon_term(writer: Any) -> None:
    """Has a handler of its own, and so has a child that it forks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    fork = multiprocessing.get_context("fork")
    ready, child_writer = fork.Pipe(duplex=False)
    child = fork.Process(target=_tell_and_pause, args=[child_writer])
    child.start()
    ready.recv()
    try:
        # Not while it forks: what a handler raises in a function of os.register_at_fork is lost.
        _tell_and_pause(writer)
    finally:
        child.terminate()
        child.join()
        assert child.exitcode == 5


def _tell_and_pause(writer: Any) -> None:
    writer.send("ready")
    while True:
        time.sleep(0.1)  # pause() would miss a signal that comes just before it.


def close_and_wait(sock: socket.socket, _address: object) -> None:
    """Closes the connection long before it is done."""
    sock.sendall(f"{os.getpid()}".encode())
    sock.close()
    signal.pause()


def linger(sock: socket.socket, _address: object) -> None:
    """Closes with more than the buffers hold unsent, and with a close that waits for the peer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
    if sock.recv(10) == b"much":
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(LONG))
    else:
        sock.sendall(b"a little")


def linger_late(sock: socket.socket, address: object) -> None:
    """The same, once its client has said something."""
    sock.recv(1, socket.MSG_PEEK)
    linger(sock, address)


LONG = 400_000
"""Bytes of an answer: more than the buffers of a connection hold where its peer does not read."""


def answer_unread(sock: socket.socket, _address: object) -> None:
    """Reads ten bytes of the request, and answers at length."""
    sock.recv(10)
    sock.sendall(bytes(LONG))


async def answer_unread_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop."""
    loop = asyncio.get_running_loop()
    await loop.sock_recv(sock, 10)
    await loop.sock_sendall(sock, bytes(LONG))


async def answer_stream(sock: socket.socket, _address: object) -> None:
    """As with asyncio.start_server: what is written is sent after the handler has returned."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    unix = sock.family == socket.AF_UNIX
    connect = asyncio.open_unix_connection if unix else asyncio.open_connection
    reader, writer = await connect(sock=sock)
    try:
        request = await reader.readline()
        writer.write(bytes(LONG))
        if request == b"raise\n":
            raise RuntimeError("asked to")
    finally:
        if request == b"close\n":
            writer.close()


class _Protocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(bytes(LONG + len(data)))
        self.transport.close()


async def answer_by_protocol(sock: socket.socket, _address: object) -> None:
    """Gives the connection to a protocol and returns at once, as web servers do."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await asyncio.get_running_loop().connect_accepted_socket(_Protocol, sock)


async def exit_beside_others(sock: socket.socket, _address: object) -> None:
    """Waits for what its client says; "exit" ends the worker, "cancel" only this one."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, f"{os.getpid()} ".encode())
    request = await loop.sock_recv(sock, 100)
    if request == b"exit":
        sys.exit(3)
    if request == b"call exit":
        loop.call_soon(sys.exit, 3)
        await loop.sock_recv(sock, 100)
    if request == b"cancel":
        raise asyncio.CancelledError
    await loop.sock_sendall(sock, request)


def wait_and_close_descriptor(sock: socket.socket, address: object) -> None:
    """Answers a word of the client, and closes the descriptor behind the socket's back."""
    begin_and_wait(sock, address)
    os.close(sock.fileno())


def close_descriptor(sock: socket.socket, _address: object) -> None:
    """Closes the descriptor behind the socket's back, and says whether to exit."""
    request = sock.recv(100)
    os.close(sock.fileno())
    if request == b"exit":
        sys.exit(7)


_streams: list[object] = []


async def end_oddly(sock: socket.socket, _address: object) -> None:
    """Closes the descriptor behind the socket's back, or has its task cancelled after it returned,
    with a part of the request unread or with a transport that stays open."""
    loop = asyncio.get_running_loop()
    request = await loop.sock_recv(sock, 6)
    if request == b"closes":
        os.close(sock.fileno())
        return
    if request == b"stream":
        _streams.append(await asyncio.open_connection(sock=sock))
    task = asyncio.current_task()
    assert task is not None
    loop.call_later(0.05, task.cancel)


def keep_alive(sock: socket.socket, _address: object) -> None:
    """Answers until its client closes or the worker is to leave, for which it looks at times."""
    sock.settimeout(0.02)
    sock.sendall(f"{os.getpid()} ".encode())
    while not is_leaving():
        try:
            if not (request := sock.recv(1000)):
                return
        except TimeoutError:
            continue
        sock.sendall(request)


async def keep_alive_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop, where nobody has to look."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, f"{os.getpid()} ".encode())
    leaving = asyncio.create_task(leaving_event().wait())
    while not leaving.done():
        request = asyncio.create_task(loop.sock_recv(sock, 1000))
        await asyncio.wait([leaving, request], return_when=asyncio.FIRST_COMPLETED)
        if not request.done():
            request.cancel()
            assert is_leaving()
            return
        if not request.result():
            break
        await loop.sock_sendall(sock, request.result())
    leaving.cancel()


def hang(sock: socket.socket, _address: object) -> None:
    """Waits for what never comes, where its client wants it to; else answers with the pid."""
    request = sock.recv(1000)
    if request == b"hang":
        logging.info("hangs")
        while True:
            signal.pause()
    sock.sendall(f"{os.getpid()}".encode())


async def hang_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop, all of which waits; "wait" leaves the loop to others."""
    loop = asyncio.get_running_loop()
    request = await loop.sock_recv(sock, 1000)
    if request == b"hang":
        logging.info("hangs")
        while True:
            signal.pause()
    if request == b"wait":
        await loop.sock_recv(sock, 1000)
    await loop.sock_sendall(sock, f"{os.getpid()}".encode())


async def block_async(sock: socket.socket, _address: object) -> None:
    """Answers with the pid. "block" blocks the whole event loop until the client says more, and
    then fails."""
    loop = asyncio.get_running_loop()
    if await loop.sock_recv(sock, 1000) == b"block":
        logging.info("blocks")
        sock.setblocking(True)
        sock.recv(1000)
        raise RuntimeError("asked to")
    await loop.sock_sendall(sock, f"{os.getpid()}".encode())


async def burn_async(sock: socket.socket, _address: object) -> None:
    """Begins, and uses a CPU until its client goes, where that wants it to."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b".")
    await loop.sock_recv(sock, 1000)
    end = asyncio.ensure_future(loop.sock_recv(sock, 1000))
    while not end.done():
        await asyncio.sleep(0)


def work_for_long(sock: socket.socket, _address: object) -> None:
    """Takes as many seconds as its client wants, and says all the while that it does not hang."""
    end = time.monotonic() + float(sock.recv(1000))
    while time.monotonic() < end:
        note_progress()
    sock.sendall(f"{os.getpid()}".encode())


def give_to_thread(sock: socket.socket, _address: object) -> None:
    """Has a thread answer, in its own time."""
    fd = sock.detach()

    def answer() -> None:
        with socket.socket(fileno=fd) as taken:
            taken.sendall(f"{os.getpid()} ".encode())
            taken.sendall(taken.recv(1000))

    threading.Thread(target=answer).start()


_executor = ThreadPoolExecutor(2)


def give_to_executor(sock: socket.socket, _address: object) -> None:
    """Has a thread pool answer, whose threads wait for more afterwards."""
    fd = sock.detach()

    def answer() -> None:
        with socket.socket(fileno=fd) as taken:
            taken.sendall(f"{os.getpid()} ".encode())
            taken.sendall(taken.recv(1000))

    _executor.submit(answer)


_numbers = itertools.count()


def wait_then_number(sock: socket.socket, _address: object) -> None:
    """The first connection waits for its client; each is told how many came before."""
    if not (number := next(_numbers)):
        sock.sendall(b".")
        sock.recv(100)
    sock.sendall(f"{number}".encode())


def _start_unless(path: Path) -> None:
    if path.exists() and path.read_text() == "full":
        # No room for anything that it receives.
        os.close(free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
    elif path.exists():
        raise RuntimeError("no start today")


def main(delay: str, flag: str, address: str) -> None:
    """A pool whose workers do not start while there is a file flag. The first delay between two
    attempts has so many seconds."""
    failed_starts._FIRST_DELAY = float(delay)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    Pool(echo, 2, setup=lambda: _start_unless(Path(flag)), drain=10000).serve(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
