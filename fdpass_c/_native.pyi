"""The compiled C core. csrc/fdpass_api.h says what each call does; a test holds this against it."""

from typing import Any, Protocol

class _FFI(Protocol):
    NULL: Any
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def new_allocator(self, *, should_clear_after_alloc: bool) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def from_buffer(self, cdecl: str, buffer: Any) -> Any: ...
    def cast(self, cdecl: str, source: Any) -> Any: ...
    def unpack(self, cdata: Any, length: int) -> Any: ...
    def offsetof(self, cdecl: str, *fields: str | int) -> int: ...
    def sizeof(self, cdecl: Any) -> int: ...
    def typeof(self, cdecl: Any) -> Any: ...
    def addressof(self, cdata: Any, *fields: str | int) -> Any: ...

class _Lib(Protocol):
    FDP_MAX_FDS: int
    FDP_ADDRESS_SIZE: int
    def fdp_size_control(self, fd_capacity: int) -> int: ...
    def fdp_build_control(
        self, control: Any, capacity: int, fds: Any, fd_count: int, credentials: Any
    ) -> int: ...
    def fdp_parse_control(
        self,
        control: Any,
        length: int,
        msg_flags: int,
        ret_fds: Any,
        fd_capacity: int,
        ret_arrival: Any,
    ) -> None: ...
    def fdp_send_message(self, sock: int, message: Any, flags: int) -> int: ...
    def fdp_send_bytes(
        self, sock: int, data: Any, length: int, fds: Any, fd_count: int, flags: int
    ) -> int: ...
    def fdp_send_fd(self, sock: int, data: Any, length: int, fd: int, flags: int) -> int: ...
    def fdp_recv_message(
        self,
        sock: int,
        buffers: Any,
        buffer_count: int,
        fd_capacity: int,
        flags: int,
        ret_received: Any,
    ) -> int: ...
    def fdp_recv_bytes(
        self,
        sock: int,
        ret_data: Any,
        capacity: int,
        fd_capacity: int,
        flags: int,
        ret_received: Any,
    ) -> int: ...
    FDP_BATCH: int
    FDP_FRAME_VERSION: int
    FDP_FRAME_SIZE: int
    FDP_FRAME_MESSAGES: int
    FDP_HEADER_SIZE: int
    FDP_COLUMN_SIZE: int
    FDP_TOTALS_SIZE: int
    FDP_PACKED: int
    FDP_FIRST: int
    FDP_NEXT: int
    FDP_WITHDRAWN: int
    FDP_SAME_LENGTH: int
    FDP_ONE_EACH: int
    FDP_MALFORMED: int
    FDP_TORN: int
    FDP_MISSING: int
    FDP_SURPLUS: int
    FDP_UNWANTED: int
    FDP_TRUNCATED: int
    def fdp_write_header(
        self,
        ret_header: Any,
        kind: int,
        flags: int,
        fd_count: int,
        message_count: int,
        body_size: int,
    ) -> None: ...
    def fdp_send_frame(
        self,
        sock: int,
        data: Any,
        length: int,
        fds: Any,
        fd_count: int,
        flags: int,
        ret_sent: Any,
    ) -> int: ...
    def fdp_write_column(self, ret_head: Any, length: int, count: int) -> None: ...
    def fdp_send_column(
        self, sock: int, payloads: Any, length: int, fds: Any, count: int
    ) -> int: ...
    def fdp_send_tagged(self, sock: int, payload: Any, length: int, fd: int) -> int: ...
    def fdp_parse_frame(self, bytes: Any, size: int, ret_frame: Any) -> int: ...
    def fdp_start_reader(self, ret_reader: Any, sock: int, accept_fds: int) -> None: ...
    def fdp_read_frame(self, reader: Any) -> int: ...
    def fdp_poll_frame(self, reader: Any) -> int: ...
    def fdp_close_reader(self, reader: Any) -> None: ...
    def fdp_count_room(self) -> int: ...
    FDP_FEATURE_SENDMMSG: int
    FDP_FEATURE_RECVMMSG: int
    FDP_FEATURE_CLOSE_RANGE: int
    FDP_FEATURE_PWRITEV2: int
    def fdp_check_empty(self, sock: int) -> int: ...
    def fdp_send_batch(
        self,
        sock: int,
        payloads: Any,
        lengths: Any,
        fds: Any,
        fd_counts: Any,
        count: int,
        flags: int,
        progress: Any,
    ) -> int: ...
    def fdp_recv_batch(
        self,
        sock: int,
        ret_data: Any,
        capacity: int,
        fd_capacity: int,
        max_messages: int,
        flags: int,
        ret_inbox: Any,
    ) -> int: ...
    def fdp_broadcast(
        self, fds: Any, fd_count: int, buffers: Any, count: int, ret_results: Any
    ) -> int: ...
    def fdp_broadcast_bytes(
        self, fds: Any, fd_count: int, data: Any, length: int, ret_results: Any
    ) -> int: ...
    def fdp_write_rows(self, fd: int, rows: Any, width: int, count: int) -> int: ...
    def fdp_read_peer(self, sock: int, ret_credentials: Any) -> int: ...
    def fdp_open_peer(self, sock: int) -> int: ...
    def fdp_check_family(self, sock: int) -> int: ...
    def fdp_close_fds(self, fds: Any, fd_count: int) -> None: ...
    def fdp_close_fd(self, fd: int) -> None: ...
    def fdp_find_features(self) -> int: ...

ffi: _FFI
lib: _Lib
