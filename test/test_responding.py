"""Responses that the middleware drops are sent again, and no callback waits for them."""

import threading
from unittest.mock import MagicMock
import warnings

import pytest

from sww_ros.nodes import lifecycle
from sww_ros.nodes.lifecycle import Responder

DROPPED = 'failed to send response (timeout): client will not receive response, at x.cpp:153'


class Service:
    """Drops the first `drops` responses, as rclpy's does for a client it has not discovered."""

    srv_name = '/narrator/ask'

    def __init__(self, drops: int) -> None:
        self.drops, self.sent, self.threads = drops, threading.Event(), []

    def send_response(self, response: object, header: object) -> None:
        self.threads.append(threading.current_thread().name)
        if self.drops:
            self.drops -= 1
            warnings.warn(DROPPED, RuntimeWarning, stacklevel=1)
        else:
            self.sent.set()


@pytest.fixture
def responder():
    node = MagicMock()
    made = Responder(node)
    made.log = node.get_logger()
    yield made
    made.close()


def listen(monkeypatch) -> None:
    """Hear warnings as the narrator does; pytest takes them itself when a test begins."""
    warnings.simplefilter('always')
    monkeypatch.setattr(warnings, 'showwarning', lifecycle._notice)


def test_a_response_that_arrives_is_sent_once(responder, monkeypatch):
    listen(monkeypatch)
    service = Service(0)
    responder.attend(service)
    service.send_response('response', 'header')
    assert service.threads == ['MainThread']


def test_a_dropped_response_is_sent_again_off_the_callback(responder, monkeypatch):
    listen(monkeypatch)
    service = Service(3)
    responder.attend(service)
    service.send_response('response', 'header')
    assert service.sent.wait(30)
    assert service.threads[0] == 'MainThread' and len(service.threads) == 4
    assert all(name.startswith('late response') for name in service.threads[1:])
    assert not responder.log.warning.called


def test_what_is_lost_for_good_is_logged(responder, monkeypatch):
    listen(monkeypatch)
    monkeypatch.setattr(lifecycle, 'TRIES', 5)
    service = Service(10**9)
    logged = threading.Event()
    responder.log.warning.side_effect = lambda _: logged.set()
    responder.attend(service)
    service.send_response('response', 'header')
    assert logged.wait(30)
    assert '/narrator/ask is lost' in responder.log.warning.call_args.args[0]
    assert len(service.threads) == 6


def test_nothing_is_tried_once_it_is_closed(responder, monkeypatch):
    listen(monkeypatch)
    service = Service(10**9)
    responder.attend(service)
    responder.close()
    service.send_response('response', 'header')
    assert service.threads == ['MainThread']


def test_other_warnings_are_shown_as_before(responder, monkeypatch):
    listen(monkeypatch)
    shown = []
    monkeypatch.setattr(lifecycle, '_show', lambda message, *_: shown.append(str(message)))
    warnings.warn('something else', RuntimeWarning, stacklevel=1)
    assert shown == ['something else']
