"""One frame of generation as a CUDA graph: its many small kernels are started by one call.

    graph = FrameGraph(next_frame, now, added, generator)
    frames_BF, now = graph(now, added)

Source: "CUDA graphs", https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable

import torch
from torch import Tensor

from babble.model.babbler import Added
from babble.model.cells import State

# What the next frame is sampled from: the input of the head, and every layer's state.
Now = tuple[Tensor, list[State]]
# (now, added) -> (frames_BF, now)
NextFrame = Callable[[Now, Added | None], tuple[Tensor, Now]]


class FrameGraph:
    """A function of fixed shapes on a GPU, recorded once and played back.

    It samples what the function itself would have sampled. To be made and called in inference mode.

    Args:
        next_frame: the function; it draws from `generator`.
        now: its first input; the graph keeps a copy.
        added: of a network with tokens, what the context of a frame adds; the graph keeps a copy.
        generator: of the GPU.
    """

    def __init__(self, next_frame: NextFrame, now: Now, added: Added | None, generator: torch.Generator) -> None:
        # The recording has the addresses of the weights, and does not keep them alive.
        self._next_frame = next_frame
        hidden_BH, state = now
        self._now: Now = hidden_BH.clone(), [tuple(part.clone() for part in layer) for layer in state]
        self._added = (added[0].clone(), added[1].clone()) if added else None
        random_state = generator.get_state()
        # Libraries make their workspaces in a first call, which cannot be recorded.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            next_frame(self._now, self._added)
        torch.cuda.current_stream().wait_stream(aside)
        generator.set_state(random_state)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._frames_BF, after = next_frame(self._now, self._added)
            _copy(after, self._now)

    def __call__(self, now: Now, added: Added | None) -> tuple[Tensor, Now]:
        """Return the frames (B, F) that the function samples, and what the next ones are sampled from."""
        if now is not self._now:
            _copy(now, self._now)
        if self._added:
            assert added, "a network with tokens needs the context of the next frame"
            for source, target in zip(added, self._added, strict=True):
                target.copy_(source)
        self._graph.replay()
        return self._frames_BF.clone(), self._now


def _copy(source: Now, target: Now) -> None:
    target[0].copy_(source[0])
    for source_layer, target_layer in zip(source[1], target[1], strict=True):
        for source_part, target_part in zip(source_layer, target_layer, strict=True):
            target_part.copy_(source_part)
