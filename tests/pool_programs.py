"""Programs with pools that the command line cannot ask for: pool_programs.py NAME ARGUMENT..."""

import asyncio
import atexit
import contextlib
import ctypes
import errno
import faulthandler
import importlib
import itertools
import logging
import multiprocessing
import os
import platform
import resource
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from functools import partial
from typing import Any

from fdpass_c import Channel, aio
from fdpass_c.pool import (
    Pool,
    dispatch,
    event_loop,
    failed_starts,
    is_leaving,
    leaving_event,
    metrics_server,
    open_listener,
)
from support import handlers
from support.handlers import begin_and_wait, begin_and_wait_async, obey
from support.processes import become_nobody

# linux/filter.h, linux/seccomp.h, linux/prctl.h
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST_ARGUMENT = 0, 16
ACCEPT4 = {"x86_64": 288, "aarch64": 242, "riscv64": 242}


def _deny_accept(fd: int, code: int) -> None:
    """Has every accept of this process on descriptor fd fail from now on."""
    program = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, ACCEPT4[platform.machine()]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 0, 1, fd),
        (_RETURN, 0, 0, _FAIL | code),
        (_RETURN, 0, 0, _ALLOW),
    ]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filtering = struct.pack("HP", len(program), ctypes.addressof(lines))
    libc = ctypes.CDLL(None)
    nothing = [ctypes.c_ulong(0)] * 2
    assert libc.prctl(38, ctypes.c_ulong(1), ctypes.c_ulong(0), *nothing) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(filtering), *nothing) == 0


def accept_fails(code: str, *addresses: str) -> None:
    """A pool of one worker that can accept nothing at the first address."""
    listeners = [open_listener(address) for address in addresses]
    _deny_accept(listeners[0].fileno(), int(code))
    Pool(obey, 1).serve(*listeners)


def end_listeners(how: str, *addresses: str) -> None:
    """A pool of two workers; USR2 shuts down or closes the first listener that is still open."""
    listeners = [open_listener(address) for address in addresses]
    left = iter(listeners)
    end = {
        "read": lambda sock: sock.shutdown(socket.SHUT_RD),
        "both": lambda sock: sock.shutdown(socket.SHUT_RDWR),
        "close": socket.socket.close,
    }[how]
    signal.signal(signal.SIGUSR2, lambda *_: end(next(left)))
    Pool(begin_and_wait, 2).serve(*listeners)


def close_metrics(*addresses: str) -> None:
    """A pool of two workers; USR2 closes the socket for the metrics."""
    listener = open_listener("127.0.0.1:0")

    def close(*_: object) -> None:
        listener.close()
        logging.info("closed")

    signal.signal(signal.SIGUSR2, close)
    Pool(obey, 2).serve(*addresses, metrics=listener)


def short_metrics(*addresses: str) -> None:
    """A pool of one worker, with metrics for clients that are quick."""
    metrics_server._CLIENT_TIMEOUT = 0.5
    Pool(obey, 1).serve(*addresses, metrics="127.0.0.1:0")


class _Full(selectors.DefaultSelector):
    """A selector with no room for the first that each function has it watch."""

    def __init__(self) -> None:
        super().__init__()
        self._tried = {"__init__"}  # Before the pool serves it may fail.

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        caller = sys._getframe(1).f_code.co_name
        if caller not in self._tried:
            self._tried.add(caller)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().register(fileobj, events, data)


def no_room_to_watch(*addresses: str) -> None:
    """A pool of one worker, with metrics, whose selector has no room for a moment."""
    selectors.DefaultSelector = _Full  # type: ignore[misc]
    metrics_server._RETRY_DELAY = 0.05
    Pool(obey, 1).serve(*addresses, metrics="127.0.0.1:0")


def fail_once(method: str, *addresses: str) -> None:
    """A pool of one worker; a method of the master's channels fails the first time."""
    works = getattr(Channel, method)
    failures = iter([OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))])

    def fail_first(channel: Channel, *arguments: Any) -> Any:
        if error := next(failures, None):
            raise error
        return works(channel, *arguments)

    setattr(Channel, method, fail_first)
    Pool(obey, 1).serve(*addresses)


def small_buffers(*addresses: str) -> None:
    """A pool of one event loop whose channel has no room for all that the master sends at once."""
    make = socket.socketpair

    def make_small(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        pair = make(*arguments)
        for sock in pair:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return pair

    socket.socketpair = make_small  # type: ignore[assignment]
    Pool(handlers.echo_async, 1, 500).serve(*addresses)


def receive_once(*addresses: str) -> None:
    """A pool of one event loop. No worker can receive more than it receives at once."""
    works = aio.Channel.recv_many
    receives = itertools.count()

    async def receive(channel: aio.Channel) -> Any:
        batch = await works(channel)
        if next(receives):
            batch.close()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return batch

    aio.Channel.recv_many = receive  # type: ignore[assignment, method-assign]
    Pool(begin_and_wait_async, 1, 10).serve(*addresses)


def print_to(where: str, *addresses: str) -> None:
    """A pool in a program that cannot print what it has printed."""
    if where == "closed":
        sys.stdout.close()
    elif where == "none":
        sys.stdout = None
    elif where == "no stream":
        sys.stdout = object()
    else:
        reader, writer = os.pipe()
        os.close(reader)
        sys.stdout = open("/dev/full" if where == "full" else writer, "w")  # noqa: SIM115
        print("never seen")
    Pool(obey, 1).serve(*addresses)


def close_standard_error(handler: str, *addresses: str) -> None:
    """A pool of one worker; the program's log goes nowhere once the pool serves."""
    Pool(getattr(handlers, handler), 1, setup=sys.stderr.close).serve(
        *addresses, ready=lambda _: sys.stderr.close()
    )


def _forbid_errors() -> None:
    """From now on, the pool's log fails at each error."""

    def check(record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR:
            raise LookupError("no such field")
        return True

    logging.getLogger("fdpass_c.pool").addFilter(check)


def fail_to_log(handler: str, *addresses: str) -> None:
    """A pool of one worker in a program whose filter of the log fails at each error."""

    _forbid_errors()
    Pool(getattr(handlers, handler), 1).serve(*addresses)


def end_beside_others(gate: str, *addresses: str) -> None:
    """A pool of two event loops, which end if they cannot log a failure. Their teardown says
    whether they are leaving, and takes as long as there is a file gate."""

    async def wait() -> None:
        logging.info("leaving: %s, %s", is_leaving(), leaving_event().is_set())
        while os.path.exists(gate):
            await asyncio.sleep(0.01)

    _forbid_errors()
    Pool(handlers.block_async, 2, 4, teardown=wait).serve(*addresses)


def default_timeout(seconds: str, *addresses: str) -> None:
    """A pool of two workers in a program whose new sockets have a timeout."""
    socket.setdefaulttimeout(float(seconds))

    def answer(sock: socket.socket, _address: object) -> None:
        timeout = sock.gettimeout()
        sock.recv(1000)
        sock.sendall(f"{os.getpid()} {timeout}".encode())

    Pool(answer, 2).serve(*addresses)


def die_of_broken_pipes(path: str, *addresses: str) -> None:
    """A pool of one worker with metrics at path, in a program that SIGPIPE ends, as it ends tools
    of the command line."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    Pool(obey, 1).serve(*addresses, metrics=path)


def give_up_root(drain: str, *addresses: str) -> None:
    """A pool of two workers in a program that becomes another user as soon as they have started."""
    Pool(begin_and_wait, 2, drain=float(drain)).serve(*addresses, ready=lambda _: become_nobody())


def end_slowly(handler: str, workers: str, capacity: str, drain: str, *addresses: str) -> None:
    """A pool whose teardown takes longer than any test."""
    Pool(
        getattr(handlers, handler),
        int(workers),
        int(capacity),
        drain=float(drain),
        teardown=partial(time.sleep, 100),
    ).serve(*addresses)


def wait_to_start(gate: str, option: str, value: str, *addresses: str) -> None:
    """A pool of two workers that do not start while there is a file gate; an option more."""

    def wait() -> None:
        while os.path.exists(gate):
            time.sleep(0.01)

    options: dict[str, Any] = {option: float(value) if "." in value else int(value)}
    Pool(obey, 2, setup=wait, **options).serve(*addresses)


def without_limits(*addresses: str) -> None:
    """A pool of one worker with the largest numbers that a program may think of."""
    Pool(
        begin_and_wait,
        1,
        sys.maxsize + 1,
        max_requests=sys.maxsize + 1,
        drain=1e12,
        start_timeout=1e12,
        timeout=1e12,
    ).serve(*addresses)


def die_idle(*addresses: str) -> None:
    """A pool of one worker that dies when it has started."""

    def die_soon() -> None:
        threading.Timer(0.02, os.kill, [os.getpid(), signal.SIGKILL]).start()

    Pool(obey, 1, setup=die_soon).serve(*addresses)


def rare_heartbeats(*addresses: str) -> None:
    """A pool of three event loops that show progress once an hour, unless the master looks more
    often."""
    event_loop._HEARTBEAT_INTERVAL = 3600.0
    Pool(handlers.hang_async, 3, 3, timeout=1).serve(*addresses)


def retry_often(*addresses: str) -> None:
    """A pool of one event loop that tries again and again to receive when its table is full."""
    event_loop._RETRY_DELAY = 0.001
    Pool(begin_and_wait_async, 1, 100).serve(*addresses)


def die_of_the_first(*addresses: str) -> None:
    """A pool of one worker that has no room for any connection. It counts as started at once."""
    failed_starts.STABLE_AFTER = 0.0
    failed_starts._FIRST_DELAY = 0.01

    def fill() -> None:
        os.close(free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))

    Pool(obey, 1, setup=fill).serve(*addresses)


def use_up(flag: str, *addresses: str) -> None:
    """A pool of one worker that is used up by two connections. None starts while there is a file
    flag."""
    failed_starts._FIRST_DELAY = 0.01

    def start() -> None:
        if os.path.exists(flag):
            raise RuntimeError("no start today")

    Pool(obey, 1, max_requests=2, setup=start).serve(*addresses)


def log_often(*addresses: str) -> None:
    """A pool of one worker that logs every error, also one that lasts."""
    dispatch._LOG_INTERVAL = 0.0
    Pool(begin_and_wait, 1, 50).serve(*addresses)


def wait_for_any(how: str, *addresses: str) -> None:
    """A pool of two workers, in a program that waits for whatever child ends."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Of a fork beside a thread.

    def wait() -> bool:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0 if how == "thread" else os.WNOHANG)[0]:
                pass
        return False

    if how == "thread":
        # Once the workers have been forked.
        threading.Timer(0.5, wait).start()
    else:
        # Between finding a worker dead and starting the next, and at other moments.
        logging.getLogger("fdpass_c.pool").addFilter(lambda _: not wait())
    Pool(obey, 2).serve(*addresses)


def teardown(path: str, handler: str, *addresses: str) -> None:
    """A pool of one worker whose teardown notes its threads in a file; an atexit of the program's
    own notes that it runs."""

    def note(text: str) -> None:
        with open(path, "a") as file:
            file.write(f"{text}\n")

    def note_threads() -> None:
        note(f"teardown beside {len([t for t in threading.enumerate() if not t.daemon]) - 1}")

    atexit.register(note, "atexit")
    Pool(
        getattr(handlers, handler),
        1,
        setup=lambda: note("setup"),
        teardown=note_threads,
        drain=100,
    ).serve(*addresses)


def start_processes(path: str, *addresses: str) -> None:
    """A pool of one worker that leaves a manager, a daemon and a queue to multiprocessing. A file
    gets whether a daemon of the program's outlives the workers, and what they put into the queue.
    """
    queue: multiprocessing.Queue[int] = multiprocessing.Queue()
    context = multiprocessing.get_context("fork")
    own = context.Process(target=signal.pause, daemon=True)
    own.start()
    kept = []

    def start() -> None:
        kept.append(context.Manager())
        context.Process(target=signal.pause, daemon=True).start()

    def end() -> None:
        for number in range(100):
            queue.put(number)

    Pool(obey, 1, setup=start, teardown=end).serve(*addresses)
    with open(path, "a") as file:
        file.write(f"{own.is_alive()}\n")
        queue.put(-1)
        file.writelines(f"{number}\n" for number in iter(queue.get, -1))
    own.kill()
    own.join()


def tracebacks_to(path: str, *addresses: str) -> None:
    """A pool of one worker that can hang. The program wants tracebacks in a file."""
    with open(path, "w") as file:
        faulthandler.enable(file)
        Pool(handlers.hang, 1, timeout=0.4).serve(*addresses)


def use_a_manager(*addresses: str) -> None:
    """A pool of two workers that use a manager at their start, as the program did before."""
    with multiprocessing.get_context("fork").Manager() as manager:
        table = manager.dict({0: 0})
        assert table[0] == 0

        def start() -> None:
            for number in range(1000):
                table[os.getpid()] = number
                assert table[os.getpid()] == number

        Pool(obey, 2, setup=start).serve(*addresses)


def fork_in_setup(handler: str, *addresses: str) -> None:
    """A pool of one worker whose setup forks and returns in both processes."""

    async def fork() -> None:
        os.fork()

    plain = handler == "echo"
    Pool(getattr(handlers, handler), 1, setup=os.fork if plain else fork).serve(*addresses)


def exit_at_start(handler: str, *addresses: str) -> None:
    """A pool whose workers exit with a message before they are ready."""

    async def fail() -> None:
        sys.exit("no database")

    setup = fail if handler == "echo_async" else partial(sys.exit, "no database")
    Pool(getattr(handlers, handler), 1, setup=setup).serve(*addresses)


def hide_a_coroutine(name: str, handler: str, *addresses: str) -> None:
    """A pool of one worker whose setup or teardown returns a coroutine, which nobody can know
    before."""

    async def note() -> None:
        pass

    options: dict[str, Any] = {name: lambda: note()}
    Pool(getattr(handlers, handler), 1, **options).serve(*addresses)


def under_gevent(*addresses: str) -> None:
    """A pool of two workers in a program that gevent has patched before its imports; a greenlet of
    each worker runs while the worker waits for connections."""
    gevent = importlib.import_module("gevent")

    ticks: list[None] = []

    def tick() -> None:
        while True:
            ticks.append(None)
            gevent.sleep(0.001)

    def handle(sock: socket.socket, _address: object) -> None:
        if sock.recv(1000) == b"slow":
            with gevent.Timeout(0.01):
                sock.recv(1000)
        sock.sendall(f"{os.getpid()} {len(ticks)}".encode())

    Pool(handle, 2, setup=lambda: gevent.spawn(tick)).serve(*addresses)


def tell_addresses(gate: str, *addresses: str) -> None:
    """A pool of two workers that do not start while there is a file gate; logs when it is ready,
    and where it listens."""

    def wait() -> None:
        while os.path.exists(gate):
            time.sleep(0.01)

    Pool(obey, 2, setup=wait).serve(
        *addresses, ready=lambda found: logging.info("ready at %r", found)
    )


def raise_when_ready(*addresses: str) -> None:
    """A pool whose program fails when it hears that all workers have started."""

    def fail(_addresses: object) -> None:
        raise RuntimeError("not ready for that")

    Pool(obey, 2).serve(*addresses, ready=fail)


def in_a_loop_of_its_own(*addresses: str) -> None:
    """A pool whose workers answer with the name of their loop's class."""

    class Loop(asyncio.SelectorEventLoop):
        pass

    async def handle(sock: socket.socket, _address: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, type(loop).__name__.encode())

    Pool(handle, 1, loop_factory=Loop).serve(*addresses)


def in_the_loop(path: str, *addresses: str) -> None:
    """A pool of one worker whose setup, handler and teardown note in a file that they run in the
    same loop; "exit" ends the worker, and a file path.die keeps it from starting."""
    loops = []

    async def note(text: str) -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        with open(path, "a") as file:
            file.write(f"{text} in {len({*loops})}\n")

    async def handle(sock: socket.socket, _address: object) -> None:
        request = await asyncio.get_running_loop().sock_recv(sock, 100)
        await note(request.decode())
        if request == b"exit":
            sys.exit(3)

    async def start() -> None:
        await note("setup")
        if os.path.exists(f"{path}.die"):
            raise RuntimeError("no start today")

    Pool(handle, 1, setup=start, teardown=partial(note, "teardown")).serve(*addresses)


def asgi(workers: str, *arguments: str) -> None:
    """A pool of support.asgi_app; NAME=VALUE is an option of uvicorn's, or drain."""
    from fdpass_c.pool.asgi import AsgiServer

    options: dict[str, Any] = dict(word.split("=", 1) for word in arguments if "=" in word)
    addresses = [word for word in arguments if "=" not in word]
    drain = float(options.pop("drain", 30))
    if "timeout_keep_alive" in options:
        options["timeout_keep_alive"] = int(options["timeout_keep_alive"])
    pool = AsgiServer("support.asgi_app:app", **options).make_pool(int(workers), 100, drain=drain)
    pool.serve(*addresses)


def resize(*addresses: str) -> None:
    """A pool of one worker that gets two more, and loses one of them, once it is ready."""

    def change(_addresses: object) -> None:
        pool.add_worker()
        pool.add_worker()
        pool.remove_worker()

    pool = Pool(obey, 1)
    pool.serve(*addresses, ready=change)


def main(name: str, *arguments: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    globals()[name](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
