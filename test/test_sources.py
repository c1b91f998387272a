"""Whether the sources publish the right pixels at the right times, and say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import importlib.util
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_readers import write_video
from waiting import PATIENCE_S, wait_until

from sww_ros.images import compressed_to_rgb, image_to_rgb
from sww_ros.settings import Setting
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import generate

ROOT = Path(__file__).resolve().parents[1]
NANOSECONDS = 1_000_000_000


@pytest.mark.parametrize('value, words', [
    (10, 'rate must be a double, not 10: write 10.0'),
    ('fast', "rate must be a double, not 'fast'"),
    (0.0, 'rate must be 0.1 to 240, not 0.0'),
    (True, 'rate must be a double, not True'),
])
def test_settings_say_what_is_wrong(value, words: str):
    setting = Setting('rate', 10.0, 'Frames per second.', low=0.1, high=240.0)
    with pytest.raises(ValueError) as caught:
        setting.check(value)
    assert str(caught.value) == words


# Publishing, with real processes.

class Listener:
    """Collects the messages of some topics, and shuts its own ROS context down."""

    def __init__(self, **topics: type) -> None:
        rclpy = pytest.importorskip('rclpy')
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
        from sensor_msgs.msg import CompressedImage, Image

        self._rclpy, self._context = rclpy, rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node('listener', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.got: dict[str, list] = {topic: [] for topic in topics}
        for topic, kind in topics.items():
            latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            plain = qos_profile_sensor_data if kind in (Image, CompressedImage) else 10
            self.node.create_subscription(
                kind, topic.replace('__', '/'), self.got[topic].append,
                latched if topic.endswith('scene') else plain)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self._rclpy.shutdown(context=self._context)


@contextmanager
def listening(**topics: type) -> Iterator[Listener]:
    listener = Listener(**topics)
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def node(module: str, **parameters: object) -> Iterator[subprocess.Popen]:
    """Run a node with parameters; it is ended if it has not ended by itself."""
    settings = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
    process = subprocess.Popen(
        [sys.executable, '-m', f'sww_ros.nodes.{module}', '--ros-args', *settings],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def stamp_ns(message) -> int:
    return message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec


def test_shapes_camera_shows_the_scene_that_it_announces(ros_domain: int):
    messages = pytest.importorskip('sensor_msgs.msg')
    from std_msgs.msg import String
    with listening(image=messages.Image, shapes_camera__scene=String,
                   shapes_camera__truth=String) as listener:
        with node('shapes_camera', seed=5, rate=20.0, width=96, height=64, duration=4.0,
                  wait_for_subscriber=True, at_end='stop', encoding='bgr8') as process:
            assert process.wait(PATIENCE_S) == 0, process.stderr.read()
        told = json.loads(listener.got['shapes_camera__scene'][0].data)
        assert told == dict(seed=5, seconds=4.0, difficulty='normal', max_objects=2,
                            start_stamp_ns=told['start_stamp_ns'])
        scene = generate(told['seed'], told['seconds'], told['difficulty'], told['max_objects'])
        renderer = Renderer(scene, 96, 64)
        images = listener.got['image']
        assert len(images) > 4  # Of 80; a busy machine skips many.
        for image in images:
            index, rest = divmod(stamp_ns(image) - told['start_stamp_ns'], NANOSECONDS // 20)
            assert rest == 0 and image.encoding == 'bgr8' and image.header.frame_id == 'camera'
            np.testing.assert_array_equal(image_to_rgb(image), renderer.frame(index / 20))
        truth = [fact.claim.sentence for fact in scene.facts_visible(3.95)]
        heard = [message.data for message in listener.got['shapes_camera__truth']]
        # What is true from the start may be said before the topic is connected.
        assert heard and heard == truth[-len(heard):]


def test_shapes_camera_compresses_goes_on_and_stops_when_told(ros_domain: int):
    messages = pytest.importorskip('sensor_msgs.msg')
    from std_msgs.msg import String
    with listening(image__compressed=messages.CompressedImage,
                   shapes_camera__scene=String) as listener:
        with node('shapes_camera', seed=5, rate=20.0, duration=1.0, transport='compressed',
                  publish_truth=False) as process:
            scenes = listener.got['shapes_camera__scene']
            wait_until(lambda: len(scenes) > 1 and listener.got['image__compressed'])
            first, second = (json.loads(scene.data) for scene in scenes[:2])
            assert second['seed'] == first['seed'] + 1
            assert second['start_stamp_ns'] - first['start_stamp_ns'] == NANOSECONDS
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
            assert 'Traceback' not in process.stderr.read()
        assert compressed_to_rgb(listener.got['image__compressed'][-1]).shape == (336, 336, 3)


def test_video_source_keeps_the_times_of_the_video(ros_domain: int, tmp_path: Path):
    messages = pytest.importorskip('sensor_msgs.msg')
    video = write_video(tmp_path / 'a.mp4', count=12, rate=10)
    with listening(image=messages.Image) as listener:
        with node('video_source', source=video, wait_for_subscriber=True, width=40,
                  height=30) as process:
            assert process.wait(PATIENCE_S) == 0, process.stderr.read()
        images = listener.got['image']
    assert len(images) > 1  # Of 12; a busy machine skips many.
    for image in images:
        assert (image.width, image.height) == (40, 30)
        index = (stamp_ns(image) - stamp_ns(images[0])) / (NANOSECONDS / 10)
        index += round(image_to_rgb(images[0]).mean() / 20)
        assert index == pytest.approx(round(index), abs=1e-6)
        assert image_to_rgb(image).mean() == pytest.approx(20 * round(index), abs=5)


@pytest.mark.parametrize('module, parameters, words', [
    ('video_source', dict(source='nowhere.mp4'), 'there is no file, folder or camera nowhere.mp4'),
    ('shapes_camera', dict(rate=10), 'rate must be a double, not 10: write 10.0'),
])
def test_mistakes_end_a_source_with_one_line(ros_domain: int, module: str, parameters: dict,
                                             words: str):
    pytest.importorskip('rclpy')
    with node(module, **parameters) as process:
        assert process.wait(PATIENCE_S) == 1
        log = process.stderr.read()
    assert words in log and log.count('\n') == 1


# Config files.

@pytest.mark.parametrize('name', ['shapes_camera', 'video_source'])
def test_config_file_holds_every_parameter_and_its_default(name: str):
    yaml = pytest.importorskip('yaml')
    pytest.importorskip('rclpy')
    settings = importlib.import_module(f'sww_ros.nodes.{name}').SETTINGS
    text = (ROOT / 'config' / f'{name}.yaml').read_text()
    written = yaml.safe_load(text)['/**']['ros__parameters']
    assert written == {setting.name: setting.default for setting in settings}
    for setting in settings:
        assert type(written[setting.name]) is type(setting.default), setting.name
        assert setting.description.split('.')[0][:40] in ' '.join(text.replace('#', '').split())
