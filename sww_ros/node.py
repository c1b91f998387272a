"""What every node needs: parameters by a table of settings, and an end that is told in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import difflib
from itertools import pairwise
from pathlib import Path
import queue
import re
import signal
import sys
import threading
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import Executor, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
import yaml

from sww_ros.settings import START, WHEN, Setting, Value

TEXT_QOS = QoSProfile(depth=256, reliability=ReliabilityPolicy.RELIABLE)
"""Deep enough for a slow reader of a fast model: text must not have holes."""

QOS = 'qos_overrides.'
QOS_POLICIES = {'reliability': ReliabilityPolicy, 'history': HistoryPolicy}
MAX_DEPTH = 100_000


def descriptor(setting: Setting) -> ParameterDescriptor:
    """Return what ROS tools show of a parameter."""
    described = ParameterDescriptor(
        name=setting.name, description=f'{setting.description} {WHEN[setting.changes]}',
        read_only=setting.changes == START)
    if setting.allowed:
        described.additional_constraints = f'one of: {", ".join(setting.allowed)}'
    if setting.kind == 'double':
        described.floating_point_range = [
            FloatingPointRange(from_value=float(setting.low), to_value=float(setting.high))]
    elif setting.kind == 'integer':
        described.integer_range = [
            IntegerRange(from_value=int(setting.low), to_value=int(setting.high), step=1)]
    return described


def declare(node: Node, settings: Iterable[Setting]) -> dict[str, Any]:
    """
    Declare the parameters and return their values.

    :raises ValueError: for an override of another type or out of its range
    """
    return {setting.name: _declare(node, setting) for setting in settings}


def read(node: Node, settings: Iterable[Setting]) -> dict[str, Any]:
    """Return the present values of declared parameters."""
    return {setting.name: node.get_parameter(setting.name).value for setting in settings}


def _declare(node: Node, setting: Setting) -> Value:
    try:
        declared = node.declare_parameter(setting.name, setting.default, descriptor(setting))
    except ParameterException as error:
        # rclpy's words name neither the range nor what to write instead.
        if setting.name in (given := overrides(node)):
            setting.check(given[setting.name])
        raise ValueError(f'parameter {setting.name}: {error}') from error
    return setting.check(declared.value)


def overrides(node: Node) -> Mapping[str, object]:
    """Return what was set from outside, declared or not; rclpy has no public word for it."""
    return {name: parameter.value
            for name, parameter in getattr(node, '_parameter_overrides', {}).items()}


def join_override(node: Node, name: str) -> None:
    """Have a list of strings that was set from outside be one string, with commas between them."""
    given = overrides(node).get(name)
    if isinstance(given, list | tuple) and all(isinstance(part, str) for part in given):
        node._parameter_overrides[name] = Parameter(name, value=', '.join(given))


def check_qos(given: Mapping[str, object]) -> None:
    """
    Check all `qos_overrides`, before a topic makes use of them.

    :raises ValueError: for one that no topic can have
    """
    for name, value in given.items():
        policy = name.rpartition('.')[2]
        if not name.startswith(QOS):
            continue
        if policy == 'depth':
            Setting(name, 1, '', high=MAX_DEPTH).check(value)
        elif policy in QOS_POLICIES:
            known = [kind.name.lower() for kind in QOS_POLICIES[policy] if kind.name != 'UNKNOWN']
            Setting(name, known[0], '', choices=tuple(known)).check(
                value.lower() if isinstance(value, str) else value)


def unknown(given: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return what is given but not known, each with the nearest known name, '' if none is near."""
    known = list(known)
    return {name: next(iter(difflib.get_close_matches(name, known, n=1)), '')
            for name in given if name not in known}


def unknown_overrides(node: Node) -> dict[str, str]:
    """
    Return what was set from outside and is no parameter of the node, with the nearest name.

    The QoS of a topic can be told only once the node has a topic whose QoS can be set.
    """
    known = list(node.get_parameters_by_prefix(''))
    has_qos = any(name.startswith(QOS) for name in known)
    return unknown([name for name in overrides(node) if has_qos or not name.startswith(QOS)], known)


def files_of_others(arguments: Sequence[str], node: str) -> dict[str, list[str]]:
    """
    Return the parameter files of a command line that name other nodes only, with their names.

    :param node: the node's full name
    """
    files = [path for option, path in pairwise(arguments) if option == '--params-file']
    named = {path: list(_named(_read(path))) for path in files}
    return {path: names for path, names in named.items()
            if names and not any(_pattern(name).fullmatch(node) for name in names)}


def _read(path: str) -> object:
    """Return what a file holds; nothing, where ROS can read it and Python cannot."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _named(tree: object, above: str = '') -> Iterator[str]:
    """Yield the names of nodes for which a file holds parameters."""
    if isinstance(tree, dict):
        if 'ros__parameters' in tree:
            yield above
        for name, part in tree.items():
            if name != 'ros__parameters':
                yield from _named(part, f'{above}/{str(name).strip("/")}')


def _pattern(name: str) -> re.Pattern[str]:
    """Return what a name stands for: * is any one part of a name, ** any number of them."""
    parts = {'/**': '(/[^/]+)*', '/*': '/[^/]+'}
    return re.compile(''.join(
        parts.get(part, re.escape(part)) for part in re.findall('/[^/]*', name)))


SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGNAL_S = 0.2
"""The longest that a signal goes unnoticed."""


class EndingNode(Node):
    """A node that can end its process, from any thread."""

    def __init__(self, name: str) -> None:
        """
        Make the node.

        :raises ValueError: for a `qos_overrides` parameter that no topic can have
        """
        super().__init__(name)
        self._ends: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._warned_of: set[str] = set()
        check_qos(overrides(self))

    def warn_of_unknown_parameters(self) -> None:
        """Warn, once each, of parameters that were set from outside and that nobody reads."""
        for name, nearest in unknown_overrides(self).items():
            if name not in self._warned_of:
                self._warned_of.add(name)
                self.get_logger().warning(
                    f'the parameter {name} is set, but there is none of that name'
                    + (f': did you mean {nearest}?' if nearest else ''))

    def end(self, exit_code: int) -> None:
        """Have the process end."""
        self._ends.put(exit_code)

    def wait_for_end(self) -> int:
        """Wait for `end` and return the exit code."""
        while True:
            try:
                return self._ends.get(timeout=SIGNAL_S)
            except queue.Empty:
                # A signal that reached another thread, or this one just before it began to wait,
                # wakes nobody: Python handles it now, between two waits.
                pass

    def release(self) -> None:
        """Stop whatever the node started; called once, before it is destroyed."""


def run(name: str, make_node: Callable[[], EndingNode], args: list[str] | None = None, *,
        threads: int = 1) -> int:
    """
    Make a node and spin it to its end, or to SIGINT or SIGTERM; return the exit code.

    Arguments and parameters that cannot be (ValueError of `make_node`, or rclpy's own) are logged
    in one line, and the exit code is 1. A callback that fails is logged, and the others go on.

    :param make_node: makes an EndingNode
    :param threads: the most callbacks that run at once
    """
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # rclpy names no narrower public one.
        get_logger(name).fatal(_in_words(error))
        return 1
    # Until there is a node to end, the default is right: nothing needs to be undone.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        try:
            node = make_node()
        except (NameValidationException, ParameterException, ValueError) as error:
            get_logger(name).fatal(str(error))
            return 1
        _warn_of_files(node, sys.argv if args is None else args)
        node.warn_of_unknown_parameters()
        for number in SIGNALS:
            signal.signal(number, lambda *_: node.end(0))
        executor = MultiThreadedExecutor(threads) if threads > 1 else SingleThreadedExecutor()
        executor.add_node(node)
        stopping = threading.Event()
        spinning = threading.Thread(target=_spin, args=[executor, node, stopping], name='spin')
        spinning.start()
        try:
            return node.wait_for_end()
        finally:
            node.release()
            stopping.set()
            executor.create_task(lambda: None)  # Wakes it.
            spinning.join()
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
        # Python gives its handlers up before the process has ended; all there was to end is.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _warn_of_files(node: EndingNode, arguments: list[str]) -> None:
    name = node.get_fully_qualified_name()
    for path, others in files_of_others(arguments, name).items():
        node.get_logger().warning(
            f'the file {path} sets no parameter of {name}, only of {", ".join(others)}')


def _in_words(error: RuntimeError) -> str:
    """Return what rcl says, without the places in its own source."""
    words = re.sub(r',\s+at \S+:\d+', '', str(error)).removeprefix('failed to initialize rcl: ')
    return f'ROS cannot begin with these arguments: {words.strip()}'


def _spin(executor: Executor, node: Node, stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            executor.spin_once()
        except Exception as error:  # A callback's mistake must not end all other callbacks.
            node.get_logger().error(f'a callback failed: {type(error).__name__}: {error}')
