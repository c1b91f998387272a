"""The node shapes_camera: a camera that looks at the shapes world."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
import json

from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

from sww_ros.frames import NANOSECONDS, SourceFrame
from sww_ros.node import run
from sww_ros.settings import Setting
from sww_ros.shapes.render import Renderer
from sww_ros.shapes.scene import PRESETS, Scene, generate
from sww_ros.sources.video_source import SOURCE_SETTINGS, SourceNode

NAME = 'shapes_camera'
SETTINGS = (
    Setting('seed', 7, 'Which scene to show.', low=0, high=2 ** 31 - 1),
    Setting('rate', 10.0, 'Frames per second [Hz].', low=0.1, high=240.0),
    Setting('width', 336, 'Width of the images [pixels].', low=16, high=8192),
    Setting('height', 336, 'Height of the images [pixels].', low=16, high=8192),
    Setting('duration', 600.0, 'Length of a scene [s]; a longer one is another one.', low=1.0,
            high=86400.0),
    Setting('difficulty', 'normal', 'How hard the scene is to follow.', choices=tuple(PRESETS)),
    Setting('max_objects', 0, 'Shapes in the picture at a time; 0: as the difficulty says.',
            high=4),
    Setting('at_end', 'next', "What follows the end of a scene: 'next' (that of the next seed), "
            "'repeat' (the same again) or 'stop' (the node ends).",
            choices=('next', 'repeat', 'stop')),
    Setting('publish_truth', True, 'Whether to say each true sentence on ~/truth when it becomes '
            'visible.'),
    *SOURCE_SETTINGS,
)


class ShapesCamera(SourceNode):
    """Renders scene after scene; frame k is stamped with exactly the start + k / rate."""

    def __init__(self) -> None:
        """
        Declare everything and begin.

        :raises ValueError: for a parameter of another type or out of its range
        """
        super().__init__(NAME, SETTINGS)
        self.patience_ns = round(NANOSECONDS / self.values['rate'])
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._scene_publisher = self.create_publisher(String, '~/scene', latched)
        self._truth_publisher = None
        if self.values['publish_truth']:
            self._truth_publisher = self.create_publisher(String, '~/truth', 10)
        self._start_ns = self._scene_start_ns = 0
        self._published_facts = 0
        self._scene, self._renderer = self._write(self.values['seed'])
        self._renderer.frame(0.0)  # The first frame takes longest: not when it is due.
        self.start()

    def started(self, start_ns: int) -> None:
        """Take note of when the first scene starts."""
        self._start_ns = start_ns

    def frames(self) -> Iterator[SourceFrame]:
        """Yield the frames of scene after scene."""
        seed, rate = self.values['seed'], self.values['rate']
        count = max(1, round(self.values['duration'] * rate))
        first = 0
        while True:
            self._announce(self._start_ns + round(first * NANOSECONDS / rate))
            for index in range(count):
                yield SourceFrame(round((first + index) * NANOSECONDS / rate),
                            partial(self._renderer.frame, index / rate))
            if self.values['at_end'] == 'stop':
                return
            first += count
            seed += self.values['at_end'] == 'next'
            self._scene, self._renderer = self._write(seed)

    def due(self, offset_ns: int) -> None:
        """Say what has become true."""
        at_s = (self._start_ns + offset_ns - self._scene_start_ns) / NANOSECONDS
        facts = self._scene.facts_visible(at_s)
        for fact in facts[self._published_facts:]:
            if self._truth_publisher is not None:
                self._truth_publisher.publish(String(data=fact.claim.sentence))
        self._published_facts = max(self._published_facts, len(facts))

    def _write(self, seed: int) -> tuple[Scene, Renderer]:
        """Return the scene of a seed, and what draws it."""
        values = self.values
        scene = generate(seed, values['duration'], values['difficulty'],
                         values['max_objects'] or None)
        return scene, Renderer(scene, values['width'], values['height'])

    def _announce(self, start_ns: int) -> None:
        """Publish what anyone needs to write the same scene again, and so to know its truth."""
        self._scene_start_ns, self._published_facts = start_ns, 0
        self._scene_publisher.publish(String(data=json.dumps({
            'seed': self._scene.seed, 'seconds': self._scene.seconds,
            'difficulty': self.values['difficulty'],
            'max_objects': self._scene.difficulty.max_objects, 'start_stamp_ns': start_ns})))


def main(args: list[str] | None = None) -> int:
    """Run the node; return the exit code."""
    return run(NAME, ShapesCamera, args)


if __name__ == '__main__':
    raise SystemExit(main())
