"""
Responses that arrive: a client that the middleware has not discovered yet is waited for.

A request may come before its sender's own end for the response is known here, on a busy machine
seconds before. The middleware then waits a tenth of a second, drops the response, and all there is
to see is a Python warning ("client will not receive response"): the caller would wait for ever.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import threading
import warnings

from rclpy.node import Node
from rclpy.service import Service

TRIES = 100
"""Each takes the middleware a tenth of a second."""
WORKERS = 4
_MESSAGE = 'failed to send response'
_lost = threading.local()


def _notice(message: Warning | str, *arguments: object, **named: object) -> None:
    """Note, for the thread that sends, that a response was dropped; show other warnings."""
    if str(message).startswith(_MESSAGE):
        _lost.happened = True
    else:
        _show(message, *arguments, **named)


_show, warnings.showwarning = warnings.showwarning, _notice
warnings.filterwarnings('always', message=_MESSAGE, category=RuntimeWarning)


class Responder:
    """Sends again what was dropped, on threads of its own, so that no callback waits for it."""

    def __init__(self, node: Node) -> None:
        self._log, self._closed = node.get_logger(), threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix='late response')

    def attend(self, service: Service) -> None:
        """Take care of the responses of a service; what is lost for good is logged."""
        send = service.send_response

        def send_response(response: object, header: object) -> None:
            if not _arrives(send, response, header) and not self._closed.is_set():
                self._pool.submit(self._try_again, send, response, header, service.srv_name)

        service.send_response = send_response

    def close(self) -> None:
        """Give up what is still tried; called before the services are destroyed."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)

    def _try_again(self, send, response: object, header: object, name: str) -> None:
        for _ in range(TRIES):
            if self._closed.is_set() or _arrives(send, response, header):
                return
        self._log.warning(f'a response of {name} is lost: its caller is gone, or was not '
                          f'discovered within {TRIES / 10:g} s')


def _arrives(send, response: object, header: object) -> bool:
    _lost.happened = False
    send(response, header)
    return not _lost.happened
