"""Whether each room of the package knows only what it is said to know (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'sww_ros'
ROS = {'rclpy', 'rcl_interfaces', 'sww_interfaces', 'std_msgs', 'std_srvs', 'builtin_interfaces',
       'diagnostic_msgs'}
NODES = {'nodes', 'sources/shapes_camera', 'sources/video_source',
         'terminal/console', 'terminal/speech', 'web/page', 'node'}
"""What may need ROS to be imported; the demo is a node too."""


def imported(path: Path, at_once: bool = False) -> set[str]:
    """
    Return the modules that a file imports, `sww_ros.nodes` for `from sww_ros import nodes` too.

    :param at_once: only those that it imports when it is itself imported
    """
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(''))


FILES = sorted(PACKAGE.rglob('*.py'))


def test_nothing_outside_of_nodes_imports_it():
    for path in FILES:
        if path.parent.name != 'nodes':
            assert not any(name.startswith('sww_ros.nodes') for name in imported(path)), path


def test_only_nodes_need_ros():
    for path in FILES:
        room = room_of(path)
        if not any(room == node or room.startswith(f'{node}/') for node in NODES | {'demo'}):
            needed = {name.partition('.')[0] for name in imported(path, at_once=True)} & ROS
            assert not needed, (path, needed)


def test_the_method_knows_neither_ros_nor_pictures():
    for path in (PACKAGE / 'streaming').glob('*.py'):
        known = {name.partition('.')[0] for name in imported(path)}
        assert not known & (ROS | {'cv2', 'av'}), path


def documented() -> dict[str, str]:
    """Return, for each row of the table of packages, what it says that the room knows."""
    page = (ROOT / 'docs/architecture.md').read_text()
    return {name: knows for names, knows in re.findall(r'^\| (`sww_ros/.+?) \|.+\| (.*) \|$', page,
                                                       re.MULTILINE)
            for name in re.findall(r'`(?:sww_ros/)?(.+?)`', names)}


def test_each_room_knows_what_the_architecture_says_it_does_and_nothing_else():
    rows, rooms = documented(), {path.relative_to(PACKAGE).parts[0] for path in FILES}
    assert rooms - {'__init__.py'} <= {*rows}
    for path in FILES:
        inside = path.relative_to(PACKAGE)
        row = max((row for row in rows if inside.is_relative_to(row)), key=len, default=None)
        for name in imported(path) if row else ():
            known = name.split('.')[1:2] if name.startswith('sww_ros.') else []
            for room in {*known} & {Path(room).stem for room in rooms}:
                assert room in (Path(row).parts[0], Path(row).stem) or re.search(
                    rf'\b{room}\b', rows[row]), f'{inside} imports {name}'


def test_the_engine_and_what_is_shown_need_no_torch_for_themselves():
    for room in ('engine', 'sources', 'terminal', 'settings', 'web'):
        for path in (PACKAGE / room).glob('*.py'):
            assert 'torch' not in {name.partition('.')[0] for name in imported(path)}, path


def test_the_first_line_of_each_file_says_what_lives_there():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.parametrize('module', [
    'narrator', 'console', 'page', 'speech', 'shapes_camera', 'video_source'])
def test_documented_nodes_are_found_where_the_documents_say(module: str):
    pytest.importorskip('rclpy')
    pages = ''.join(page.read_text() for page in (ROOT / 'docs').glob('*.md'))
    assert re.search(r'python -m sww_ros\.nodes\.(NAME|narrator)', pages)
    found = subprocess.run(
        [sys.executable, '-m', f'sww_ros.nodes.{module}', '--ros-args', '-r', '__ns:=//'],
        capture_output=True, text=True, timeout=300)
    assert found.returncode == 1, found.stderr
    assert f'[{module}]: ROS cannot begin with these arguments' in found.stderr


def test_each_public_class_has_a_name_of_its_own():
    named: dict[str, list[str]] = {}
    for path in [*FILES, *(ROOT / 'experiments').glob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                named.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in named.items() if len(found) > 1} == {}
