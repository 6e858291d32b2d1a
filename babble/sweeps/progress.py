"""The console of a running sweep: one line per change of a trial's state, and a bar on a terminal."""

import statistics
import sys
from collections.abc import Sequence

from tqdm import tqdm

from babble.sweeps.ranking import ENDED, TrialRow


class SweepProgress:
    """Print each change of a trial's state; on a terminal, show a bar of ended trials.

    Not Tune's own reporter: it repeats its whole table every few seconds, in a log too.

    Args:
        num_trials: of the sweep.
        monitor: name of the metric that trials are compared by.
        known: trials that ended in an earlier run of the sweep; they are not printed again.
    """

    def __init__(self, num_trials: int, monitor: str, known: Sequence[TrialRow] = ()) -> None:
        self.num_trials = num_trials
        self.metric = monitor.removeprefix("val/")
        self._states: dict[str, str] = {row.trial: row.state for row in known}
        # None: no bar where stderr is not a terminal.
        self._bar = tqdm(total=num_trials, bar_format="|{bar:20}| {desc}", disable=None)

    def show(self, rows: Sequence[TrialRow]) -> None:
        """Show the trials' states."""
        for row in rows:
            if row.state not in ("waiting", self._states.get(row.trial)):
                with tqdm.external_write_mode():
                    print(f"{self._describe(row)}; {self._summarize(rows)}", file=sys.stdout, flush=True)
            self._states[row.trial] = row.state
        self._bar.n = sum(row.state in ENDED for row in rows)
        self._bar.set_description_str(self._summarize(rows))

    def close(self) -> None:
        """Leave the bar on the terminal as it is."""
        self._bar.close()

    def _describe(self, row: TrialRow) -> str:
        best = f", best {self.metric} {row.best:.4f} after {row.frames:,} frames" if row.best is not None else ""
        reason = f" ({row.reason})" if row.state == "failed" else ""
        return f"{row.trial}: {row.state}{best}{reason}"

    def _summarize(self, rows: Sequence[TrialRow]) -> str:
        """Return how many trials have ended and run, the best result so far and an estimate of the time left."""
        ended = [row for row in rows if row.state in ENDED]
        running = [row for row in rows if row.state == "running"]
        results = [row.best for row in rows if row.best is not None]
        summary = f"{len(ended)} of {self.num_trials} ended, {len(running)} running"
        if results:
            summary += f", best {min(results):.4f}"
        if ended and running:
            each = statistics.mean(row.seconds for row in ended)
            left = (self.num_trials - len(ended)) * each - sum(row.seconds for row in running)
            summary += f", about {max(0.0, left) / len(running) / 60:.0f} min left"
        return summary
