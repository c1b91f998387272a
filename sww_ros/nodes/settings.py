"""Tables of read-only parameters: the one place where names, defaults and ranges are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Launch files read the tables too, outside of any node.
    from rclpy.node import Node

Value = bool | int | float | str
BOOLEAN_TEXTS = ('true', 'false', 'True', 'False')
"""YAML takes them all, and launch files are given both spellings."""


@dataclass(frozen=True)
class Setting:
    """One parameter; `low` and `high` bound a number, `choices` a string."""

    name: str
    default: Value
    description: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The type in ROS's words: bool, integer, double or string."""
        return {bool: 'bool', int: 'integer', float: 'double', str: 'string'}[type(self.default)]

    @property
    def default_text(self) -> str:
        """The default as it is written in YAML and as an argument of a launch file."""
        return str(self.default).lower() if self.kind == 'bool' else str(self.default)

    @property
    def choice_texts(self) -> tuple[str, ...]:
        """All that an argument of a launch file may be; empty if that is no list."""
        return BOOLEAN_TEXTS if self.kind == 'bool' else self.choices

    def check(self, value: Value) -> Value:
        """
        Return the value.

        :raises ValueError: for one of another type or out of the range
        """
        if type(value) is not type(self.default):
            hint = f': write {float(value)}' if self.kind == 'double' and type(value) is int else ''
            article = 'an' if self.kind == 'integer' else 'a'
            raise ValueError(f'{self.name} must be {article} {self.kind}, not {value!r}{hint}')
        if self.choices and value not in self.choices:
            raise ValueError(f'{self.name} must be one of {", ".join(self.choices)}, '
                             f'not {value!r}')
        if self.kind in ('integer', 'double') and not self.low <= value <= self.high:
            raise ValueError(f'{self.name} must be {self.low:g} to {self.high:g}, not {value!r}')
        return value

    def parse(self, text: str) -> Value:
        """
        Return the value that an argument of a launch file stands for.

        :raises ValueError: for text of another type, or a value out of the range
        """
        value: Value = text
        try:
            if self.kind == 'bool' and text in BOOLEAN_TEXTS:
                value = text.lower() == 'true'
            elif self.kind in ('integer', 'double'):
                value = type(self.default)(text)
        except ValueError:
            pass  # It stays text, which is refused.
        return self.check(value)


def declare(node: Node, settings: Iterable[Setting]) -> dict[str, Value]:
    """
    Declare the parameters and return their values.

    :raises ValueError: for an override of another type or out of its range
    """
    return {setting.name: _declare(node, setting) for setting in settings}


def _declare(node: Node, setting: Setting) -> Value:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import ParameterException

    described = ParameterDescriptor(
        name=setting.name, description=f'{setting.description} Read-only.', read_only=True)
    if setting.choices:
        described.additional_constraints = f'one of: {", ".join(setting.choices)}'
    if setting.kind == 'double':
        described.floating_point_range = [
            FloatingPointRange(from_value=float(setting.low), to_value=float(setting.high))]
    elif setting.kind == 'integer':
        described.integer_range = [
            IntegerRange(from_value=int(setting.low), to_value=int(setting.high), step=1)]
    try:
        declared = node.declare_parameter(setting.name, setting.default, described)
    except ParameterException as error:
        # rclpy's words name neither the range nor what to write instead.
        wrong = getattr(node, '_parameter_overrides', {}).get(setting.name)
        if wrong is not None:
            setting.check(wrong.value)
        raise ValueError(f'parameter {setting.name}: {error}') from error
    return setting.check(declared.value)
