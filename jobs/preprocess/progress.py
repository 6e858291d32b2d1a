"""Progress of a preprocessing: a bar on a terminal, plain lines in a log."""

import sys
import time

from tqdm import tqdm

from preprocessing.sources import Source

LOG_SECONDS = 30
BAR_SECONDS = 0.2


class Progress:
    """Shows hours done, speed and time left: a bar on a terminal, a line every 30 seconds in a log."""

    def __init__(self, sources: list[Source]) -> None:
        self._bytes = {source.name: source.num_bytes for source in sources}
        self._known: dict[str, float] = {}
        self._done = self._encoded = 0.0
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=0.0,
                unit="h",
                bar_format="{percentage:3.0f}%|{bar}| {n:.2f} of about {total:.2f} h{postfix}",
            )

    def set_length(self, name: str, seconds: float) -> None:
        """Note the length of a recording, once it is known."""
        self._known[name] = seconds

    def add(self, seconds: float, *, is_staged: bool = False) -> None:
        """Count speech as done: encoded now, or staged by an earlier run."""
        self._done += seconds
        self._encoded += 0.0 if is_staged else seconds

    def total_seconds(self) -> float:
        """Return the length of all recordings; unopened ones are estimated from their size in bytes."""
        known_bytes = sum(self._bytes[name] for name in self._known)
        rate = sum(self._known.values()) / known_bytes if known_bytes else 0.0
        return sum(self._known.values()) + rate * (sum(self._bytes.values()) - known_bytes)

    def show(self) -> None:
        """Update the bar, or print a line if the last one is 30 seconds old."""
        now = time.monotonic()
        if now - self._last < (LOG_SECONDS if self._bar is None else BAR_SECONDS):
            return
        self._last = now
        total = max(self._done, self.total_seconds())
        speed = self._encoded / (now - self._start)
        left = _clock((total - self._done) / speed) if speed else "?"
        state = f"{speed:.0f} x real time, {left} left"
        if self._bar is None:
            print(f"{self._done / 3600:.2f} of about {total / 3600:.2f} h, {state}", flush=True)
        else:
            self._bar.total = total / 3600
            self._bar.n = self._done / 3600
            self._bar.set_postfix_str(state)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """End the bar, so that the next line starts below it."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
