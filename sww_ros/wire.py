"""Messages between the node and the engine's process: a JSON header and raw bytes."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading

PREFIX = struct.Struct('!II')
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 28


class LostChannel(ValueError):
    """Bytes that are no message: where the next one begins cannot be known."""


class Channel:
    """
    One end of a stream socket that carries whole messages in order.

    A message is two lengths (bytes, 32 bit, network order), a JSON object and raw bytes: the
    pixels of a frame, or none. Any thread may send, one thread receives.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send_lock = threading.Lock()

    def send(self, header: dict, payload: bytes | memoryview = b'') -> None:
        """
        Send one message; waits while the other end is not reading.

        :raises ValueError: for a message that is too large
        :raises OSError: when the other end is gone
        """
        encoded = json.dumps(header).encode()
        payload = memoryview(payload).cast('B') if len(payload) else memoryview(b'')
        _check_sizes(len(encoded), len(payload))
        with self._send_lock:
            self._socket.sendall(PREFIX.pack(len(encoded), len(payload)) + encoded)
            if payload:
                self._socket.sendall(payload)

    def receive(self) -> tuple[dict, bytearray] | None:
        """
        Wait for the next message; None when the other end is gone.

        :raises LostChannel: for bytes that are no message; nothing can be received any more
        :raises ValueError: for a header that is no JSON object; the next message can be received
        """
        prefix = self._read(PREFIX.size)
        if prefix is None:
            return None
        header_bytes, payload_bytes = PREFIX.unpack(prefix)
        try:
            _check_sizes(header_bytes, payload_bytes)
        except ValueError as error:
            raise LostChannel(str(error)) from error
        header, payload = self._read(header_bytes), self._read(payload_bytes)
        if header is None or payload is None:
            return None
        return _parse(header), payload

    def wait_readable(self, timeout_s: float) -> bool:
        """Return whether a message, or the end, arrives within the time [s]."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close both directions, which wakes whoever waits at either end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The other end was first.
        self._socket.close()

    def _read(self, count: int) -> bytearray | None:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            try:
                received = self._socket.recv_into(rest)
            except OSError:
                return None
            if received == 0:
                return None
            rest = rest[received:]
        return data


def _parse(header: bytearray) -> dict:
    try:
        parsed = json.loads(header)
    except RecursionError:
        raise ValueError('the header of a message is nested too deep') from None
    except ValueError as error:
        raise ValueError(f'the header of a message is not JSON: {error}') from error
    if not isinstance(parsed, dict):
        raise ValueError(f'the header of a message is no object: {parsed!r:.80}')
    return parsed


def _check_sizes(header_bytes: int, payload_bytes: int) -> None:
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ValueError(f'a message of {header_bytes} + {payload_bytes} bytes is too large: '
                         f'at most {MAX_HEADER_BYTES} + {MAX_PAYLOAD_BYTES}')
