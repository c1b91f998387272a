"""Runs the demo: starts the processes, listens, shows what is said, asks questions, and ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
import json
from pathlib import Path
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import (
    DurabilityPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import String

from sww_interfaces.msg import StepLatency, TextChunk
from sww_interfaces.srv import Ask
from sww_ros.demo.processes import Child, Household, command_of
from sww_ros.demo.record import DemoRecord, Exchange, NarratedSentence, Step
from sww_ros.frames import NANOSECONDS
from sww_ros.images import image_to_rgb
from sww_ros.shapes.render import difference
from sww_ros.shapes.truth import Witness
from sww_ros.terminal import Display, Line, Transcript, seconds_since
from sww_ros.web import step_of, text_of

if TYPE_CHECKING:
    from sww_ros.demo.__main__ import DemoOptions

NARRATOR_TOPICS = {
    'narrator/caption': (TextChunk, 'text'),
    'narrator/answer': (TextChunk, 'text'),
    'narrator/latency': (StepLatency, 'step'),
}

LOOK_S = 1.0
"""Time between two looks at the camera's picture."""


@dataclass(frozen=True)
class DemoEvent:
    """What came: kind text | step | scene | picture | asked, and its content."""

    kind: str
    content: Any


class Listener:
    """Subscribes to the narrator and the camera; `events` holds what comes, in order."""

    def __init__(self) -> None:
        """Join ROS; signals stay with the main loop."""
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.events: queue.SimpleQueue[DemoEvent] = queue.SimpleQueue()
        self._node = rclpy.create_node('demo')
        reliable = QoSProfile(depth=256, reliability=ReliabilityPolicy.RELIABLE)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for topic, (kind, name) in NARRATOR_TOPICS.items():
            self._subscribe(kind, name, topic, reliable)
        self._subscribe(String, 'scene', 'shapes_camera/scene', latched)
        self._ask = self._node.create_client(Ask, 'narrator/ask')
        self._pictures: Subscription | None = None
        self._next_look_s = 0.0
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name='listener', daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether all that the narrator says will be heard."""
        return self._ask.service_is_ready() and all(
            self._node.count_publishers(topic) for topic in NARRATOR_TOPICS)

    def now_ns(self) -> int:
        """Return the time on the clock of the stamps [ns]."""
        return self._node.get_clock().now().nanoseconds

    def tell(self, kind: str, content: Any) -> None:
        """Put an event into the queue; any thread may."""
        self.events.put(DemoEvent(kind, content))

    def ask(self, number: int, question: str) -> None:
        """Ask the narrator; the event `asked` brings (number, response)."""
        future = self._ask.call_async(Ask.Request(question=question))
        future.add_done_callback(lambda done: self.tell('asked', (number, done.result())))

    def look(self) -> None:
        """Begin to look at what the camera shows: an event `picture` each LOOK_S."""
        self._pictures = self._node.create_subscription(
            Image, 'image', self._see, qos_profile_sensor_data)

    def look_away(self) -> None:
        """Look no more; images cost time."""
        pictures, self._pictures = self._pictures, None
        if pictures is not None:
            self._node.destroy_subscription(pictures)

    def close(self) -> None:
        """Leave ROS."""
        self._stopping.set()
        self._executor.create_task(lambda: None)  # Wakes it.
        self._thread.join(2.0)
        self._executor.shutdown(1.0)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _subscribe(self, kind: type, name: str, topic: str, qos: QoSProfile) -> None:
        self._node.create_subscription(kind, topic, partial(self.tell, name), qos)

    def _see(self, image: Image) -> None:
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_S
            self.tell('picture', image)

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once()


OWN_QUESTIONS = 3
START_LIMIT_S = 120.0
LAST_WORDS_S = 10.0
"""How long the demo waits for answers and the end of a sentence after the last frame."""

QUIET_S = 1.5
"""So long without a word, and the narrator has said all."""

CAMERA_TIMEOUT_S = 3600.0
"""The narrator's longest: the demo itself says when nothing comes."""

SOURCE = {False: 'shapes_camera', True: 'video_source'}
LOUD = ('[WARN]', '[ERROR]', '[FATAL]')


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


class Director:
    """One run: `play` returns its record."""

    def __init__(self, options: DemoOptions, display: Display, begun_s: float) -> None:
        """
        Prepare a run.

        :param begun_s: when the command was given, on `time.monotonic`
        """
        self._options, self._display, self._begun_s = options, display, begun_s
        self._transcript = Transcript()
        self._early: dict[str, Line] = {}
        self._last_word_s = 0.0
        self._strange = False
        source = f'video {options.video}' if options.video else f'scene {options.seed}'
        self.record = DemoRecord(options.model, source)

    def play(self) -> DemoRecord:
        """
        Run to the end of the scene or video.

        :raises ChildDied: when a process ends before its time
        :raises DemoError: when nothing is perceived
        """
        with Household(self._on_log) as self._house:
            if self._options.page:
                self._house.start('page', [*command_of('page'), '--ros-args', '-p',
                                           f'port:={self._options.page}'])
                self._display.note(f'see it at http://localhost:{self._options.page}')
            self._house.start('narrator', self._narrator_command())
            self._listener = listener = Listener()
            try:
                # The camera comes last, so that not a word is missed.
                self._wait(lambda: listener.connected, 'the narrator did not come')
                source = self._house.start(SOURCE[bool(self._options.video)],
                                           self._source_command())
                self._wait(lambda: self.record.steps, 'nothing was perceived')
                if self._options.video and self._options.is_builtin:
                    listener.look()
                self._watch(source)
                self._wait_for_last_words()
                for line in self._transcript.open_lines:
                    self._display.line(line, 'cut off by the end')
            finally:
                listener.close()
        return self.record

    # The processes.

    def _narrator_command(self) -> list[str]:
        model = self._options.model
        if Path(model).expanduser().exists():
            model = str(Path(model).expanduser().resolve())
        command = self._options.narrator or command_of('narrator')
        # The camera is the demo's own: it comes late and goes early, and none has to look for it.
        return [*command, '--ros-args', '-p', f'model:={_quoted(model)}',
                '-p', f'camera_timeout:={CAMERA_TIMEOUT_S}']

    def _source_command(self) -> list[str]:
        options = self._options
        settings = dict(wait_for_subscriber='true')
        if options.video:
            path = Path(options.video).expanduser()
            settings['source'] = _quoted(str(path.resolve()) if path.exists() else options.video)
        else:
            settings.update(seed=options.seed, duration=float(options.seconds), at_end='stop')
        return [*command_of(SOURCE[bool(options.video)]), '--ros-args', *(
            part for name, value in settings.items() for part in ('-p', f'{name}:={value}'))]

    def _on_log(self, name: str, line: str) -> None:
        """Pass on what a process logs, if it is worth it; called on its reader's thread."""
        if any(level in line for level in LOUD):
            self._display.note(f'{name}: {line.partition("]: ")[2] or line}')

    # The run.

    def _wait(self, condition: Callable[[], object], trouble: str) -> None:
        end = time.monotonic() + START_LIMIT_S
        while not condition():
            self._take_event()
            if time.monotonic() > end:
                raise DemoError(f'{trouble} within {START_LIMIT_S:.0f} s')

    def _watch(self, source: Child) -> None:
        """Listen until the end of the scene or video, and ask the questions on the way."""
        asked = self._options.questions
        count = OWN_QUESTIONS if asked is None else len(asked)
        times_s = [self._options.seconds * (n + 1) / (count + 1) for n in range(count)]
        while not source.ended:
            self._take_event()
            if self._strange:
                self._listener.look_away()
            now_s = (self._listener.now_ns() - self.record.start_ns) / NANOSECONDS
            number = len(self.record.exchanges)
            # The scene is announced on a topic of its own, which may be found later than the words.
            known = (self._options.video or asked is not None
                     or self.record.witness is not None)
            if number < count and now_s >= times_s[number] and known:
                self._ask(number)
            if self._options.video and now_s >= self._options.seconds:
                source.process.terminate()
                source.process.wait(5.0)
        # A video that is shorter than expected: what is left is asked now.
        for number in range(len(self.record.exchanges), count):
            self._ask(number)

    def _wait_for_last_words(self) -> None:
        end = time.monotonic() + LAST_WORDS_S
        self._last_word_s = time.monotonic()
        while time.monotonic() < end:
            self._take_event()
            quiet = time.monotonic() - self._last_word_s > QUIET_S
            if quiet and all(exchange.done for exchange in self.record.exchanges):
                return

    def _ask(self, number: int) -> None:
        seen_ns = self.record.steps[-1].stamp_ns
        exchange = Exchange('', asked_ns=self._listener.now_ns())
        if self._options.questions is not None:
            exchange.text = self._options.questions[number]
        elif self.record.witness is not None:
            used = [other.kind for other in self.record.exchanges]
            question = self.record.witness.question(seen_ns, used)
            exchange.text, exchange.kind = question.text, question.kind
        else:
            exchange.text = self._options.video_questions[number]
        self.record.exchanges.append(exchange)
        self._display.question(exchange.text, exchange.asked_ns)
        self._listener.ask(number, exchange.text)

    # Events.

    def _take_event(self) -> None:
        """Take the next event, if one comes soon."""
        self._house.check()
        try:
            event = self._listener.events.get(timeout=0.05)
        except queue.Empty:
            return
        getattr(self, f'_on_{event.kind}')(event)

    def _on_scene(self, event: DemoEvent) -> None:
        self.record.scene = json.loads(event.content.data)
        self.record.witness = Witness.from_json(event.content.data)
        self._begin(self.record.witness.start_ns)

    def _on_picture(self, event: DemoEvent) -> None:
        found = '' if self._strange else difference(image_to_rgb(event.content))
        if found:
            self._strange = True
            self._display.warn(f'this picture is unlike its world: {found}. What is said of it is '
                               'made up')

    def _on_step(self, event: DemoEvent) -> None:
        step = Step.from_message(event.content)
        self.record.heard.append(dict(kind='step', **step_of(event.content)))
        steps = self.record.steps
        if not self.record.start_ns:
            self._begin(step.stamp_ns)
        if steps and step.video > steps[-1].video and self.record.witness is not None:
            self.record.witness.restarted(step.stamp_ns)
        steps.append(step)

    def _begin(self, start_ns: int) -> None:
        self.record.start_ns = start_ns
        self.record.ready_s = time.monotonic() - self._begun_s
        self._display.clock = seconds_since(start_ns)

    def _on_text(self, event: DemoEvent) -> None:
        chunk = event.content
        self.record.heard.append(dict(kind='text', **text_of(chunk)))
        if chunk.delta:
            self._last_word_s = time.monotonic()
            if self.record.first_word_s is None:
                self.record.first_word_s = self._last_word_s - self._begun_s
        line = self._transcript.feed(chunk)
        if line is not None and line.is_answer:
            self._early[line.stream_id] = line
            self._settle(line.stream_id)
        elif line is not None and line.text:
            self._narrated(line)
        # Last, and with the answers whose question is not known yet: what waits stays in order.
        self._display.grow([*self._transcript.open_lines, *self._early.values()])

    def _narrated(self, line: Line) -> None:
        sentence, note = NarratedSentence(line), ''
        if (witness := self.record.witness) is not None:
            sentence.fact = witness.judge(line.text, line.last_seen_ns)
            note = '' if sentence.fact else 'not so'
        self.record.sentences.append(sentence)
        self._display.line(line, note)

    def _on_asked(self, event: DemoEvent) -> None:
        number, response = event.content
        exchange = self.record.exchanges[number]
        if response.accepted:
            exchange.question_id = response.question_id
            self._settle(response.question_id)
        else:
            exchange.refused = response.reason
            self._display.note(f'the question was refused: {response.reason}')

    def _settle(self, question_id: str) -> None:
        """Bring an answer and its question together, whichever came first."""
        exchange = next(
            (e for e in self.record.exchanges if e.question_id == question_id), None)
        if exchange is None or question_id not in self._early:
            return
        exchange.line = line = self._early.pop(question_id)
        note = '' if self._options.can_read(exchange.text) else 'not taught to read this'
        if (witness := self.record.witness) is not None and line.tokens:
            # Either frame may have decided: that of its first token, or that of its last.
            truths = [witness.answer(exchange.text, stamp)
                      for stamp in dict.fromkeys((line.seen_ns, line.last_seen_ns))]
            exchange.truths = [truth for truth in truths if truth is not None]
            note = f'truth: {exchange.truths[0]}' if exchange.truths else ''
        self._display.line(line, note)


def _quoted(text: str) -> str:
    """Return a string as a YAML value that stays a string."""
    return "'" + text.replace("'", "''") + "'"
