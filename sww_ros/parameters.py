"""Parameters of ROS nodes: declared by a table of settings, and checked as they were set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import difflib
from itertools import pairwise
from pathlib import Path
import re
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, ReliabilityPolicy
import yaml

from sww_ros.settings import START, WHEN, Setting, Value

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
