"""The node page: a live page in the browser for one or more narrators, and for recorded runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
import math
from pathlib import Path
import queue
import sys
import time
from typing import Any

import cv2
from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from sww_interfaces.msg import StepLatency, TextChunk
from sww_interfaces.srv import Ask, SetPrompt
from sww_ros.frames import NANOSECONDS, FrameChoice, FrameSampler
from sww_ros.images import compressed_to_rgb, image_to_rgb, jpeg_of
from sww_ros.node import TEXT_QOS, EndingNode, declare, run
from sww_ros.settings import Setting
from sww_ros.web import MAX_TEXT, Broadcast, seconds, step_of, text_of
from sww_ros.web.server import PageServer, Reply

NAME = 'page'
SETTINGS = (
    Setting('narrators', '', 'The narrators to show, a tab each: names between blanks, such as '
            "'/front/narrator /rear/narrator'; empty: 'narrator', or none where a run is shown."),
    Setting('images', '', 'Their image topics in the same order, with the ending /compressed if '
            'they have it; empty: those that /diagnostics says they watch.'),
    Setting('run', '', 'A run that `scripts/demo --json FILE` has recorded, to be shown again and '
            'again in a tab of its own.'),
    Setting('host', '127.0.0.1', 'The address to listen on; 0.0.0.0: all of this machine. On any '
            'other than its local ones a browser needs the token.'),
    Setting('port', 8080, 'The port to listen on; 0: any that is free, which the log tells.',
            high=65535),
    Setting('token', '', 'What a browser has to know, behind the # of the address; empty: none on '
            'a local address, elsewhere one that is made up at each start, which the log tells.'),
    Setting('max_browsers', 16, 'The most browsers at once.', low=1, high=1000),
    Setting('frame_rate', 10.0, 'Most frames a second that a browser is sent [Hz].', low=0.1,
            high=60.0),
    Setting('frame_width', 640, 'Wider frames are made smaller [pixels].', low=16, high=4096),
    Setting('jpeg_quality', 80, 'Quality of the frames that are sent.', low=1, high=100),
)
ANSWER_S = 5.0
"""The longest to wait for the response of a service."""
SILENCE_S = 3.0
"""A narrator whose diagnostics stay away for so long, and three times their period, is gone."""
BETWEEN_RUNS_S = 3.0


class Tab:
    """What a browser shows at a time, a narrator or a run; for the node's thread alone."""

    period_s = 0.1
    """How often `look` is called."""

    def __init__(self, node: PageNode, name: str) -> None:
        self.name, self._node, self._feed = name, node, node.feed
        self._number = node.feed.add_tab(name)
        self._tell = partial(node.feed.publish, self._number)
        self._sampler = FrameSampler(node.values['frame_rate'])

    @property
    def watched(self) -> bool:
        """Whether any browser shows it."""
        return self._number in self._feed.watched

    def look(self) -> None:
        """Do what is to be done from time to time."""

    def act(self, do: str, text: str, reply: Reply) -> None:
        """Do what a browser asks for; `reply` tells it what came of that."""

    def judge(self, array: DiagnosticArray) -> None:
        """Take what /diagnostics says."""

    def _is_frame_due(self) -> bool:
        """Whether browsers have room for a frame now, by the rate at which they are sent."""
        return self._sampler.choose(time.monotonic_ns()) is FrameChoice.TAKE

    def _show(self, stamp_s: float, pixels: np.ndarray) -> None:
        width = self._node.values['frame_width']
        if pixels.shape[1] > width:
            height = max(1, round(pixels.shape[0] * width / pixels.shape[1]))
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        jpeg = jpeg_of(pixels, self._node.values['jpeg_quality'])
        self._feed.show(self._number, stamp_s, jpeg)


class LiveTab(Tab):
    """A narrator: what it says is passed on, and it is told what browsers ask for."""

    period_s = 0.25

    def __init__(self, node: PageNode, narrator: str, image: str) -> None:
        """
        Listen to a narrator.

        :param narrator: its name
        :param image: its image topic; empty: the one that its diagnostics name
        """
        self._caption = node.resolve_topic_name(f'{narrator}/caption')
        super().__init__(node, self._caption.rpartition('/')[0])
        self._given_image = self._image = image
        for topic, kind, told, content in (('caption', TextChunk, 'text', text_of),
                                           ('answer', TextChunk, 'text', text_of),
                                           ('latency', StepLatency, 'step', step_of)):
            node.create_subscription(kind, f'{self.name}/{topic}',
                                     partial(self._pass_on, told, content), TEXT_QOS)
        self._services = {
            do: node.create_client(kind, f'{self.name}/{name}')
            for do, kind, name in (('ask', Ask, 'ask'), ('prompt', SetPrompt, 'set_prompt'),
                                   ('pause', SetBool, 'pause'), ('reset', Trigger, 'reset'))}
        self._open: dict[Future, tuple[float, str, Reply]] = {}
        self._images: Subscription | None = None
        self._watching = ''
        self._said_s = self._gap_s = 0.0
        self._here = False

    def look(self) -> None:
        """Look to the camera, if anyone watches it, to open calls, and whether all is there."""
        now = time.monotonic()
        # One that was killed is still in ROS' graph for a while.
        lost = self._said_s and now - self._said_s > max(SILENCE_S, 3 * self._gap_s)
        self._here = bool(self._node.count_publishers(self._caption)) and not lost
        self._tell('pulse', here=self._here,
                   now=self._node.get_clock().now().nanoseconds / NANOSECONDS)
        if self._watching != (topic := self._image if self.watched else ''):
            self._watch(topic)
        for future, (until_s, do, reply) in list(self._open.items()):
            if now > until_s:
                self._open.pop(future)
                self._services[do].remove_pending_request(future)
                reply(False, f'{self.name} does not respond')

    def act(self, do: str, text: str, reply: Reply) -> None:
        """Call the service that does it; `reply` is called once there is a response, or none."""
        service = self._services[do]
        if not (self._here and service.service_is_ready()):
            reply(False, f'{self.name} is not there')
            return
        given = {'ask': {'question': text}, 'prompt': {'prompt': text},
                 'pause': {'data': text == 'on'}, 'reset': {}}[do]
        asked_s = self._node.get_clock().now().nanoseconds / NANOSECONDS
        future = service.call_async(service.srv_type.Request(**given))
        self._open[future] = (time.monotonic() + ANSWER_S, do, reply)
        future.add_done_callback(partial(self._responded, text, asked_s))

    def judge(self, array: DiagnosticArray) -> None:
        """Take what /diagnostics says, if it is about this narrator."""
        parts = {}
        for status in array.status:
            name, _, part = status.name.partition(': ')
            if name == self.name.lstrip('/'):
                parts[part] = dict(level=status.level[0], words=status.message[:MAX_TEXT], values={
                    pair.key: pair.value[:MAX_TEXT] for pair in status.values})
        if parts:
            said_s, self._said_s = self._said_s, time.monotonic()
            self._gap_s = self._said_s - (said_s or self._said_s)
            found = parts.get('camera', {}).get('values', {}).get('topic', '')
            self._image = self._given_image or found or self._image
            self._tell('health', parts=parts)

    def _responded(self, text: str, asked_s: float, future: Future) -> None:
        _, do, reply = self._open.pop(future, (0.0, '', None))
        if reply is None:  # It was given up.
            return
        response = future.result()
        if do != 'ask':
            reply(response.success, response.message)
            return
        if response.accepted:
            self._tell('question', stream=response.question_id, text=text[:MAX_TEXT], at=asked_s)
        reply(response.accepted, response.reason)

    def _pass_on(self, told: str, content: Callable[[Any], dict[str, Any]], message: Any) -> None:
        self._tell(told, **content(message))

    def _watch(self, topic: str) -> None:
        if self._images is not None:
            self._node.destroy_subscription(self._images)
            self._images = None
        self._watching = topic
        if topic:
            compressed = topic.endswith('/compressed')
            kind = CompressedImage if compressed else Image
            read = compressed_to_rgb if compressed else image_to_rgb
            # Raw: only those of its messages are read that are shown.
            self._images = self._node.create_subscription(
                kind, topic, partial(self._take_image, kind, read), qos_profile_sensor_data,
                raw=True)

    def _take_image(self, kind: type, read: Callable[[Any], np.ndarray], data: bytes) -> None:
        if not self._is_frame_due():
            return
        message = deserialize_message(data, kind)
        try:
            self._show(seconds(message.header.stamp), read(message))
        except ValueError as error:
            self._node.get_logger().warning(f'{self._watching}: {error}', throttle_duration_sec=30)


class RecordedTab(Tab):
    """A recorded run, over and over, as if it went on now."""

    def __init__(self, node: PageNode, path: str) -> None:
        """
        Read the run.

        :raises ValueError: for a file that is none
        """
        # A node that shows no run needs no shapes.
        from sww_ros.demo.record import Recording
        self._recording = Recording.read(Path(path).expanduser())
        super().__init__(node, self._recording.name)
        self._paused = False
        self._begin()

    def look(self) -> None:
        """Go on to what is said by now, and show the frame of now."""
        now_s = time.monotonic()
        if not self._paused:
            self._at_s += now_s - self._looked_s
        self._looked_s = now_s
        if self._at_s > self._recording.seconds + BETWEEN_RUNS_S:
            self._begin()
        self._tell('pulse', here=True, now=self._at_s)
        for message in self._recording.between(self._told_s, self._at_s):
            self._tell(**message)
        self._told_s = self._at_s
        if self.watched and self._is_frame_due():
            pixels = self._recording.frame(self._at_s)
            if pixels is not None:
                self._show(self._at_s, pixels)

    def act(self, do: str, text: str, reply: Reply) -> None:
        """Pause or begin anew: nothing else can be done about what is over."""
        if do == 'pause':
            self._paused = text == 'on'
            self._judge()
        elif do == 'reset':
            self._begin()
        else:
            reply(False, 'this run is recorded: nobody is there to be asked or told')
            return
        reply(True, '')

    def _begin(self) -> None:
        self._told_s, self._at_s, self._looked_s = -math.inf, 0.0, time.monotonic()
        self._tell('anew')
        self._judge()

    def _judge(self) -> None:
        self._tell('health', parts=dict(camera=dict(
            level=0, words='paused' if self._paused else 'recorded',
            values=self._recording.counts)))


class PageNode(EndingNode):
    """Listens to narrators and serves the page; neither waits for a browser."""

    def __init__(self) -> None:
        """
        Begin to listen and to serve.

        :raises ValueError: for a run that cannot be read, or where it cannot be served
        """
        super().__init__(NAME)
        self.values, self.feed = declare(self, SETTINGS), Broadcast()
        self._tabs = self._open_tabs()
        for tab in self._tabs:
            self.create_timer(tab.period_s, tab.look, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_subscription(DiagnosticArray, '/diagnostics', self._judge, 10)
        self._acts: queue.SimpleQueue[tuple[int, str, str, Reply]] = queue.SimpleQueue()
        self._asked = self.create_guard_condition(self._do)
        self._server = PageServer(self.feed, self._act, **{
            name: self.values[name] for name in ('host', 'port', 'token', 'max_browsers')})
        self._server.start()
        self.get_logger().info(f'the page is at {self._server.url}')

    def release(self) -> None:
        """Send the browsers away."""
        self._server.close()

    def _open_tabs(self) -> list[Tab]:
        narrators, images = self.values['narrators'].split(), self.values['images'].split()
        if not (narrators or self.values['run']):
            narrators = ['narrator']
        if len(images) not in (0, len(narrators)):
            raise ValueError(f'images must be {len(narrators)} topics, one for each narrator, not '
                             f'{len(images)}')
        tabs: list[Tab] = [LiveTab(self, narrator, self.resolve_topic_name(image) if image else '')
                           for narrator, image in zip_longest(narrators, images, fillvalue='')]
        if self.values['run']:
            tabs.append(RecordedTab(self, self.values['run']))
        return tabs

    def _judge(self, array: DiagnosticArray) -> None:
        for tab in self._tabs:
            tab.judge(array)

    def _act(self, *what: Any) -> None:
        """Have the node's thread do what a browser asks for; the server's thread calls this."""
        self._acts.put(what)
        self._asked.trigger()

    def _do(self) -> None:
        while not self._acts.empty():
            number, do, text, reply = self._acts.get()
            self._tabs[number].act(do, text, reply)


def main(args: list[str] | None = None) -> int:
    """Run the node; return the exit code."""
    return run(NAME, PageNode, args)


if __name__ == '__main__':
    sys.exit(main())
