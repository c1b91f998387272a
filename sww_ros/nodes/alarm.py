"""Logs what the diagnostics find wrong, for those who do not read them."""

from __future__ import annotations

from collections.abc import Callable
import time

from rclpy.impl.rcutils_logger import RcutilsLogger

from sww_ros.nodes.diagnostics import ERROR, Finding

REPEAT_S = 30.0
"""Least time between two lines about the same kind of trouble."""

LOGGED_ELSEWHERE = ('silent',)


class Alarm:
    """Logs each kind of finding that has an advice: when it begins, and then seldom."""

    def __init__(self, log: RcutilsLogger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._logged_s: dict[str, float] = {}

    def tell(self, finding: Finding) -> None:
        """Take what is found now; called as often as one likes."""
        now = self._clock()
        if (not finding.advice or finding.kind in LOGGED_ELSEWHERE
                or now - self._logged_s.get(finding.kind, -REPEAT_S) < REPEAT_S):
            return
        self._logged_s[finding.kind] = now
        # rclpy wants one severity for each place that logs.
        if finding.level == ERROR:
            self._log.error(finding.words)
        else:
            self._log.warning(finding.words)
