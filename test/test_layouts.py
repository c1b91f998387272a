"""Whether the layouts of Foxglove, RViz and rqt name what the running node has; none is opened."""

import ast
from collections.abc import Iterator
import importlib
import json
from pathlib import Path

from narrator_harness import NarratorProcess, Probe, probing
import pytest
from waiting import wait_until
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOXGLOVE = json.loads((ROOT / 'layouts/narrator.foxglove.json').read_text())
PANELS = FOXGLOVE['configById']
RVIZ = yaml.safe_load((ROOT / 'layouts/narrator.rviz').read_text())
RQT = json.loads((ROOT / 'layouts/narrator.perspective').read_text())
IMAGE = 'sensor_msgs/msg/Image'
NUMBERS = {'boolean', 'float', 'double', *(
    f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64))}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('narrator')


@pytest.fixture
def probe(ros_domain: int, folder: Path) -> Iterator[Probe]:
    """Give a probe beside a narrator whose topics and services it has found."""
    with NarratorProcess(folder / 'log.txt') as narrator, probing() as probe:
        narrator.wait_log('watching /image')
        probe.wait_active()
        wait_until(lambda: '/diagnostics' in topics(probe))
        yield probe


def topics(probe: Probe) -> dict[str, list[str]]:
    return dict(probe.node.get_topic_names_and_types())


def class_of(name: str) -> type:
    """Return the class of a type; that of a field is named without the folder msg."""
    package, *kind, found = name.split('/')
    return getattr(importlib.import_module('.'.join([package, *(kind or ['msg'])])), found)


def field_of(probe: Probe, topic: str, fields: list[str]) -> str:
    """Return the type of a field of a topic's messages, or of a field of that one, and so on."""
    [found] = topics(probe)[topic]
    for name in fields:
        found = class_of(found).get_fields_and_field_types()[name]
    return found


def leaves(layout: str | dict) -> list[str]:
    """Return the panels of Foxglove's tree."""
    if isinstance(layout, str):
        return [layout]
    assert layout['direction'] in ('row', 'column') and 0 < layout['splitPercentage'] < 100
    return [*leaves(layout['first']), *leaves(layout['second'])]


def rqt_settings(plugin: str) -> dict:
    """Return the settings of the first of such plugins."""
    group = RQT['groups']['pluginmanager']['groups'][f'plugin__{plugin.replace("/", "__")}__1']
    return {name: ast.literal_eval(value['repr'])
            for name, value in group['groups']['plugin']['keys'].items()}


def test_all_panels_of_foxglove_have_a_place():
    assert sorted(leaves(FOXGLOVE['layout'])) == sorted(PANELS)
    assert {name.partition('!')[0] for name in PANELS} == {
        'Image', 'RawMessages', 'Table', 'CallService', 'Plot', 'DiagnosticSummary'}


def test_what_the_layouts_show_is_there(probe: Probe):
    shown = [(panel['topicPath'].partition('.')[0], panel['topicPath'].split('.')[1:])
             for panel in PANELS.values() if 'topicPath' in panel]
    for topic, fields in shown:
        field_of(probe, topic, fields)
    assert field_of(probe, PANELS['DiagnosticSummary!health']['topicToRender'], []) == (
        'diagnostic_msgs/msg/DiagnosticArray')
    services = dict(probe.node.get_service_names_and_types())
    asks = PANELS['CallService!ask']
    [service] = services[asks['serviceName']]
    class_of(service).Request(**json.loads(asks['requestPayload']))
    images = [PANELS['Image!camera']['imageMode']['imageTopic'],
              rqt_settings('rqt_image_view/ImageView')['topic'],
              *(display['Topic']['Value']
                for display in RVIZ['Visualization Manager']['Displays'])]
    for image in images:
        assert field_of(probe, image, []) == IMAGE


def test_what_the_layouts_plot_is_a_number(probe: Probe):
    plotted = [path['value'] for panel in PANELS.values() for path in panel.get('paths', [])]
    assert len(plotted) >= 5
    for path in plotted:
        topic, *fields = path.split('.')
        kind = field_of(probe, topic, fields)
        assert kind == 'builtin_interfaces/Duration' or kind in NUMBERS, path  # In seconds.
    for path in rqt_settings('rqt_plot/Plot')['topics']:
        topic = max((name for name in topics(probe) if path.startswith(f'{name}/')), key=len)
        kind = field_of(probe, topic, path[len(topic) + 1:].split('/'))
        assert kind in NUMBERS, path


def test_all_plugins_of_rqt_with_settings_run():
    manager = RQT['groups']['pluginmanager']
    running = ast.literal_eval(manager['keys']['running-plugins']['repr'])
    names = {f'plugin__{name.replace("/", "__")}__{number}'
             for name, numbers in running.items() for number in numbers}
    assert set(manager['groups']) <= names
