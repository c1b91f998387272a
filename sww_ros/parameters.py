"""Settings as the parameters of a ROS node."""

from __future__ import annotations

from collections.abc import Iterable

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node

from sww_ros.settings import START, WHEN, Setting, Value


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


def declare(node: Node, settings: Iterable[Setting]) -> dict[str, Value]:
    """
    Declare the parameters and return their values.

    :raises ValueError: for an override of another type or out of its range
    """
    return {setting.name: _declare(node, setting) for setting in settings}


def read(node: Node, settings: Iterable[Setting]) -> dict[str, Value]:
    """Return the present values of declared parameters."""
    return {setting.name: node.get_parameter(setting.name).value for setting in settings}


def _declare(node: Node, setting: Setting) -> Value:
    try:
        declared = node.declare_parameter(setting.name, setting.default, descriptor(setting))
    except ParameterException as error:
        # rclpy's words name neither the range nor what to write instead.
        wrong = getattr(node, '_parameter_overrides', {}).get(setting.name)
        if wrong is not None:
            setting.check(wrong.value)
        raise ValueError(f'parameter {setting.name}: {error}') from error
    return setting.check(declared.value)
