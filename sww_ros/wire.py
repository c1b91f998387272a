"""Messages between the node and the engine's process: a JSON header and raw bytes."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import threading

PREFIX = struct.Struct('!II')
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 28
BUFFER_BYTES = 1 << 16
"""
What is smaller goes, and comes, in one call.

Each call lets the interpreter go, and has to wait for it again where another thread computes: of
several calls a message one was late by a time slice of the scheduler, 3 ms, one time in ten.
"""


class LostChannel(ValueError):
    """Bytes that are no message: where the next one begins cannot be known."""


class Channel:
    """
    One end of a stream socket that carries whole messages in order.

    A message is two lengths (bytes, 32 bit, network order), a JSON object and raw bytes: the
    pixels of a frame, or none. Any thread may send, one thread receives.
    """

    def __init__(self, sock: socket.socket, ahead: int = BUFFER_BYTES) -> None:
        """
        Take over one end.

        :param ahead: how many bytes may be read before they are asked for; 0 where others, as
            who waits for file descriptors, read from the socket too
        """
        self._socket = sock
        self._send_lock = threading.Lock()
        self._buffer = memoryview(bytearray(ahead))
        self._received = self._buffer[:0]  # What nobody has read yet.

    def send(self, header: dict, payload: bytes | memoryview = b'') -> None:
        """
        Send one message; waits while the other end is not reading.

        :raises ValueError: for a message that is too large
        :raises OSError: when the other end is gone
        """
        payload = memoryview(payload).cast('B') if len(payload) else memoryview(b'')
        head = _head(header, len(payload))
        if len(head) + len(payload) <= BUFFER_BYTES:
            head, payload = b''.join((head, payload)), payload[:0]
        with self._send_lock:
            self._socket.sendall(head)
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
        return bool(self._received or select.select([self._socket], [], [], timeout_s)[0])

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._socket.fileno() < 0

    def socket(self) -> socket.socket:
        """Return the socket once more, for who sends and receives by a loop in place of this."""
        return self._socket.dup()

    def close(self) -> None:
        """Close both directions, which wakes whoever waits at either end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The other end was first.
        self._socket.close()

    def _read(self, count: int) -> bytearray | None:
        """Return so many bytes, or None when the other end is gone."""
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            if not self._received and len(rest) < len(self._buffer):
                self._received = self._buffer[:self._receive(self._buffer)]
            ready = self._received[:len(rest)]
            rest[:len(ready)], self._received = ready, self._received[len(ready):]
            if not (received := len(ready) or self._receive(rest)):
                return None
            rest = rest[received:]
        return data

    def _receive(self, room: memoryview) -> int:
        """Wait until something comes; return how many bytes it is, 0 when the other end is gone."""
        try:
            return self._socket.recv_into(room)
        except OSError:
            return 0


def packed(header: dict, payload: bytes = b'') -> bytes:
    """
    Return the bytes of one whole message.

    :raises ValueError: for a message that is too large
    """
    return _head(header, len(payload)) + payload


async def next_packed(reader: asyncio.StreamReader) -> bytes:
    """
    Return the bytes of the next whole message.

    :raises LostChannel: for bytes that are none
    :raises ConnectionError: when the other end is gone
    """
    try:
        prefix = await reader.readexactly(PREFIX.size)
        sizes = PREFIX.unpack(prefix)
        try:
            _check_sizes(*sizes)
        except ValueError as error:
            raise LostChannel(str(error)) from error
        return prefix + await reader.readexactly(sum(sizes))
    except asyncio.IncompleteReadError:
        raise ConnectionError('the other end is gone') from None


def unpacked(data: bytes) -> tuple[dict, bytes]:
    """
    Return header and payload of one whole message, and of nothing else.

    :raises ValueError: for what is none
    """
    header_bytes, payload_bytes = PREFIX.unpack_from(data) if len(data) >= PREFIX.size else (0, 0)
    if len(data) != PREFIX.size + header_bytes + payload_bytes:
        raise ValueError(f'{len(data)} bytes are no message: its lengths say otherwise')
    end = PREFIX.size + header_bytes
    return _parse(data[PREFIX.size:end]), data[end:]


def _head(header: dict, payload_bytes: int) -> bytes:
    """Return what of a message comes before its payload."""
    encoded = json.dumps(header).encode()
    _check_sizes(len(encoded), payload_bytes)
    return PREFIX.pack(len(encoded), payload_bytes) + encoded


def _parse(header: bytes | bytearray) -> dict:
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
