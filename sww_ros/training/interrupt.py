"""Ctrl-C as a wish: an update is finished first, so that weights and optimizer fit together."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_TOLD = b'\nstopping after this update, to save its state%s\n'


class Interrupt:
    """
    While it is entered, the first SIGINT only sets `wished`.

    A second one raises KeyboardInterrupt at once, unless `patient`: torchrun sends a second one
    of its own.
    """

    def __init__(self, patient: bool = False, shown: bool = True) -> None:
        self.wished = False
        self._patient, self._shown, self._before = patient, shown, None

    def __enter__(self) -> Interrupt:
        # Signals are for the main thread, and what starts us in the background may ignore them.
        if (threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)):
            self._before = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        if self.wished and not self._patient:
            raise KeyboardInterrupt
        if self._shown and not self.wished:
            # `print` must not be called while it may be running already.
            os.write(2, _TOLD % (b'' if self._patient else b'; once more stops at once'))
        self.wished = True
