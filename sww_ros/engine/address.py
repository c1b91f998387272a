"""What an engine is called that sessions share: a name on this machine, or an address."""

from __future__ import annotations

from contextlib import suppress
import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from sww_ros.engine.shared import check_name


def is_address(engine: str) -> bool:
    """Return whether what a user calls an engine is the address of one."""
    return '://' in engine


def check_engine(engine: str) -> str:
    """
    Return what an engine is called; it may be empty, where none is shared.

    :raises ValueError: for what is neither a name nor an address
    """
    return check_address(engine) if is_address(engine) else check_name(engine)


def check_address(address: str) -> str:
    """
    Return the address.

    :raises ValueError: for one that is none, or where a token could be read on its way
    """
    try:
        found = urlsplit(address)
        host, known = found.hostname, found.port != 0
    except ValueError:
        host, known = None, False
    if not (host and known) or found.scheme not in ('ws', 'wss') or found.username or found.query:
        raise ValueError(f'engine: {address!r} is no address such as wss://host:8443')
    if found.scheme == 'ws' and not is_local(host):
        raise ValueError(f'engine: {address!r} would send the token and all pictures in the clear: '
                         'use wss://')
    return address


def is_local(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == 'localhost'


def token_of(file: str) -> str:
    """
    Return the token that a file holds, the first word in it; empty where no file is named.

    :raises ValueError: in words, where it holds none
    """
    try:
        words = Path(file).expanduser().read_text().split() if file else ['']
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'the file of the token cannot be read: {error}') from None
    if not words:
        raise ValueError(f'the file {file} holds no token')
    return words[0]
