"""The node console: prints the narration and the answers as they come."""

from __future__ import annotations

import sys

from rclpy.qos_overriding_options import QoSOverridingOptions

from sww_interfaces.msg import TextChunk
from sww_ros.node import TEXT_QOS, EndingNode, declare, run
from sww_ros.settings import Setting
from sww_ros.terminal import STYLES, Transcript, make_display

NAME = 'console'
SETTINGS = (
    Setting('style', 'auto', "'rich' (lines grow, colors), 'plain' (whole lines, for pipes) or "
            "'auto': rich in a terminal.", choices=STYLES),
)
TOPICS = ('narrator/caption', 'narrator/answer')


class ConsoleNode(EndingNode):
    """Subscribes to captions and answers (remappable) and shows them on standard output."""

    def __init__(self) -> None:
        """
        Subscribe.

        :raises ValueError: for an unknown style
        """
        super().__init__(NAME)
        self._display = make_display(declare(self, SETTINGS)['style'], sys.stdout)
        self._transcript = Transcript()
        for topic in TOPICS:
            self.create_subscription(
                TextChunk, topic, self._take, TEXT_QOS,
                qos_overriding_options=QoSOverridingOptions.with_default_policies())
        topics = ' and '.join(self.resolve_topic_name(topic) for topic in TOPICS)
        self._display.note(f'listening to {topics}')

    def release(self) -> None:
        """Give the terminal back."""
        try:
            self._display.close()
        except BrokenPipeError:
            pass

    def _take(self, chunk: TextChunk) -> None:
        try:
            line = self._transcript.feed(chunk)
            self._display.grow(self._transcript.open_lines)
            if line is not None:
                self._display.line(line)
        except BrokenPipeError:
            self.end(0)  # As with `| head`: nobody reads any more.


def main(args: list[str] | None = None) -> int:
    """Run the node; return the exit code."""
    # A terminal without Unicode shows question marks, not a traceback.
    sys.stdout.reconfigure(errors='replace')
    return run(NAME, ConsoleNode, args)


if __name__ == '__main__':
    raise SystemExit(main())
