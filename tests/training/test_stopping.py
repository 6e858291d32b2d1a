"""Processes that agree when to save and when to stop."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from babble.processes import StopRequest
from babble.training import stopping
from babble.training.stopping import Consensus


class _Ranks:
    """Two ranks that take their steps one after another; a reduction waits for the second one's numbers."""

    def __init__(self) -> None:
        self.consensus = [Consensus(StopRequest()) for _ in range(2)]
        self.reductions = 0

    def step(self, number: int, wants_to_save: tuple[bool, bool] = (False, False)) -> list[bool]:
        """Return what both decide after a step."""
        seen: list[torch.Tensor] = []
        for rank in range(2):
            # The first pass collects what each rank gives to the reduction, without changing its state.
            probe = Consensus(self.consensus[rank].request)
            probe.__dict__.update(self.consensus[rank].__dict__)
            probe.poll(self._trainer(number, seen.append), wants_to_save[rank])
        agreed = torch.stack(seen).max(dim=0).values if seen else None
        assert len(seen) in (0, 2), "only one of two ranks waits for the other"
        self.reductions += bool(seen)
        return [
            self.consensus[rank].poll(self._trainer(number, lambda _: None, agreed), wants_to_save[rank])
            for rank in range(2)
        ]

    @staticmethod
    def _trainer(step: int, see: Any, agreed: torch.Tensor | None = None) -> Any:
        def reduce(numbers: torch.Tensor, reduce_op: str) -> torch.Tensor:
            see(numbers)
            return numbers if agreed is None else agreed

        strategy = SimpleNamespace(root_device="cpu", reduce=reduce)
        return SimpleNamespace(world_size=2, global_step=step, strategy=strategy)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now.seconds)
    return now


def test_two_ranks_reduce_about_once_a_second_and_stop_after_the_same_step(clock: SimpleNamespace):
    ranks = _Ranks()
    for step in range(1, 201):
        clock.seconds += 0.05
        assert ranks.step(step) == [False, False]
    # 200 steps of 50 ms are 10 s.
    assert 8 <= ranks.reductions <= 14
    ranks.consensus[1].request.number = signal.SIGUSR1
    for step in range(201, 230):
        clock.seconds += 0.05
        decisions = ranks.step(step)
        assert decisions[0] == decisions[1]
        if decisions[0]:
            break
    assert step <= 221
    assert [consensus.signal for consensus in ranks.consensus] == 2 * [signal.SIGUSR1]


def test_two_ranks_save_when_one_wants_to(clock: SimpleNamespace):
    ranks = _Ranks()
    clock.seconds = 1.0
    assert ranks.step(1, (False, True)) == [True, True]
    assert [consensus.signal for consensus in ranks.consensus] == [0, 0]


def test_slow_steps_are_asked_about_after_each(clock: SimpleNamespace):
    ranks = _Ranks()
    for step in range(1, 6):
        clock.seconds += 5
        ranks.step(step)
    assert ranks.reductions == 5


def test_one_process_decides_after_each_step_without_a_reduction():
    consensus = Consensus(StopRequest())
    for step in range(1, 5):
        trainer: Any = SimpleNamespace(world_size=1, global_step=step)
        assert consensus.poll(trainer, wants_to_save=step == 2) == (step == 2)
    consensus.request.number = signal.SIGINT
    assert consensus.poll(SimpleNamespace(world_size=1, global_step=5), wants_to_save=False)  # type: ignore[arg-type]
    assert consensus.signal == signal.SIGINT
