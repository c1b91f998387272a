"""What was set for a node from outside (parameter files, -p), compared with what it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import difflib

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, ReliabilityPolicy

from sww_ros.nodes.settings import Setting

QOS = 'qos_overrides.'
QOS_POLICIES = {'reliability': ReliabilityPolicy, 'history': HistoryPolicy}
MAX_DEPTH = 100_000


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
