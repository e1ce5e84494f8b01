"""What takes long is named in the log, with its folder and the seconds."""

import logging
import threading

from messages import says

from srcnn.runtime import watchdog
from srcnn.runtime.watchdog import warn_if_slow


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts, self.came = [], threading.Event()

    def emit(self, record):
        self.texts.append(record.getMessage())
        self.came.set()


def test_work_that_does_not_end_is_named_with_its_seconds_and_quick_work_is_not(monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "FIRST_WARNING_SECONDS", 0.2)
    heard = Heard()
    watchdog.logger.addHandler(heard)
    try:
        with warn_if_slow("/disk/quick: reading"):
            pass
        with warn_if_slow("/disk/run: writing a checkpoint"):
            assert heard.came.wait(30)
        assert says(heard.texts[0], "/disk/run", "writing a checkpoint", " s;")
        assert not any("quick" in text for text in heard.texts)
    finally:
        watchdog.logger.removeHandler(heard)
