"""Who may come: a file of robots, each with a token of its own."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
import re

LINE = re.compile(r'([A-Za-z0-9_.-]{1,64})\s+(\S{16,512})')


class Robots:
    """
    The robots of a file: a name and a token in each line; one that begins with # is left out.

    Only digests of the tokens are kept, which is all that replicas on other machines are given.

    :raises ValueError: in words, for a file that cannot be read, or has a line that is none
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'the file of tokens cannot be read: {error}') from None
        self._digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith('#'):
                continue
            found = LINE.fullmatch(line.strip())
            if not found or found[1] in self._digests:  # The line itself may be a secret.
                raise ValueError(f'{path}, line {number}: a line is a name that comes once, a '
                                 'blank, and a token of at least 16 characters')
            self._digests[found[1]] = _digest(found[2])
        if not self._digests:
            raise ValueError(f'{path} names no robot: write a name and a token into a line of it')

    def known(self, shown: str) -> str:
        """
        Return whose token is shown; empty if nobody's.

        How long that takes depends neither on the token nor on whose it is.
        """
        digest, found = _digest(shown), ''
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors='replace')).digest()
