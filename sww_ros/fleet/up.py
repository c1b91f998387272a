"""
Serves engines to robots: `python -m sww_ros.fleet up --model MODEL --robots FILE --replicas N`.

With `--replicas 0` this process serves one engine, and needs no Ray. Robots come with `engine:
wss://HOST:PORT`, and each with its token: a line of FILE is a name, a blank, and a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
import logging
from pathlib import Path
import signal
import ssl
import sys
import threading

from sww_ros.engine.address import is_local
from sww_ros.engine.client import Standby
from sww_ros.engine.process import EngineHost
from sww_ros.fleet.gateway import POOLS, Bounds, Gateway
from sww_ros.fleet.meters import LocalMeter
from sww_ros.fleet.robots import Robots
from sww_ros.fleet.server import GatewayServer, tls_of
from sww_ros.settings import add_option
from sww_ros.streaming.config import BY_NAME, SessionConfig

ENGINES = tuple(name for name in POOLS if name not in ('record_trace', 'overlap'))


def parser() -> argparse.ArgumentParser:
    """Return the parser of its options."""
    made = argparse.ArgumentParser(prog='python -m sww_ros.fleet up',
                                   description='Serve engines to robots.')
    made.add_argument('--model', default='builtin',
                      help="the checkpoint: 'builtin', a folder, or the id of a hub")
    made.add_argument('--robots', type=Path, required=True, metavar='FILE',
                      help='who may come: a name, a blank and a token of at least 16 characters '
                      'in each line')
    made.add_argument('--replicas', type=int, default=1, metavar='N',
                      help='engines on Ray; 0: one in this process, without Ray')
    made.add_argument('--host', default='127.0.0.1', help='the address to listen on')
    made.add_argument('--port', type=int, default=8443, help='the port to listen on')
    made.add_argument('--certificate', default='', metavar='FILE', help='for TLS, which any '
                      'other than a local address needs')
    made.add_argument('--key', default='', metavar='FILE', help='the key of the certificate')
    made.add_argument('--sessions', type=int, default=Bounds.sessions,
                      help='the most at once, for each engine (default: %(default)s)')
    made.add_argument('--sessions-of-one', type=int, default=Bounds.of_one,
                      help='the most of one robot at once (default: %(default)s)')
    made.add_argument('--most-steps', type=int, default=Bounds.steps, help='the most that a robot '
                      'may have a session remember (default: %(default)s)')
    made.add_argument('--address', default='', help="of a Ray cluster; 'local': none but this "
                      "process's own (default: the one that there is, else that)")
    made.add_argument('--cpus-each', type=float, default=1.0, help='cores of a replica')
    made.add_argument('--gpus-each', type=float, default=0.0,
                      help='GPUs of a replica, such as 1 or 0.5')
    for name in ENGINES:
        add_option(made, BY_NAME[name])
    return made


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code."""
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    given = parser().parse_args(arguments)
    try:
        with ending() as wait_end:
            (serve_alone if given.replicas == 0 else serve_pool)(given, wait_end)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f'fleet: {error}', file=sys.stderr)
        return 1
    return 0


@contextmanager
def ending():
    """Give what waits for Ctrl-C or SIGTERM."""
    ends = threading.Event()
    before = {number: signal.signal(number, lambda *_: ends.set())
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ends.wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def config_of(given: argparse.Namespace) -> SessionConfig:
    """
    Return what holds for the engines.

    :raises ValueError: for a setting that cannot be
    """
    return SessionConfig(**{name: getattr(given, name) for name in ENGINES if name in given})


def bounds_of(given: argparse.Namespace) -> Bounds:
    """Return what robots may have."""
    return Bounds(sessions=given.sessions, of_one=given.sessions_of_one, steps=given.most_steps)


def door_of(given: argparse.Namespace) -> ssl.SSLContext | None:
    """
    Return how TLS is spoken; None: not at all.

    :raises ValueError: in words, where somebody could listen to what is said
    """
    if bool(given.certificate) != bool(given.key):
        raise ValueError('a certificate and its key must be given together')
    if not given.certificate and not is_local(given.host):
        raise ValueError(f'{given.host} can be reached by others: give --certificate and --key, '
                         'or listen on 127.0.0.1')
    return tls_of(Path(given.certificate), Path(given.key)) if given.certificate else None


def serve_alone(given: argparse.Namespace, wait_end: Callable[[], object]) -> None:
    """Serve one engine from this process; raises as `GatewayServer` and `EngineClient.start`."""
    tls = door_of(given)
    meter, host = LocalMeter(), EngineHost()
    gateway = Gateway(host, given.model, Robots(given.robots), meter, bounds_of(given))
    standby = Standby(host, given.model, config_of(given), on_line=print)
    server = GatewayServer(gateway, meter, host=given.host, port=given.port, tls=tls,
                           ready=lambda: standby.ready)
    with ExitStack() as stack:
        stack.callback(standby.close)
        info = standby.load()
        server.start()
        stack.callback(server.close)
        print(f'fleet: {info["model"]} for robots at {server.url}', flush=True)
        wait_end()


def serve_pool(given: argparse.Namespace, wait_end: Callable[[], object]) -> None:
    """
    Serve a pool on Ray.

    :raises ImportError: in words, where Ray is not installed
    :raises RuntimeError: when it cannot be deployed
    """
    tls, robots = door_of(given), Robots(given.robots)
    try:
        from sww_ros.fleet import pool
    except ImportError as error:
        raise ImportError(f'a pool needs Ray (pip install -r requirements/fleet.txt), or take '
                          f'--replicas 0 for one engine: {error}') from None
    with pool.running(given.model, config_of(given), robots, bounds_of(given),
                      replicas=given.replicas, host=given.host, port=given.port, tls=tls,
                      address=given.address, cpus_each=given.cpus_each,
                      gpus_each=given.gpus_each) as url:
        print(f'fleet: {given.replicas} engines for robots at {url}', flush=True)
        wait_end()
