"""Rules for every test: one thread per process, nothing is sent to a server, and CI accepts only listed skips."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

# In CI a test that is skipped for another reason fails. The reason of a skip starts with one of these.
ALLOWED_SKIPS = (
    "the Tale corpus is not at hand",
    "the Margot corpus is not at hand",
    "the recogniser of the Tale's voice is not at hand",
    "not on this machine: CUDA",
    "not on this machine: bfloat16",
    "no Slurm cluster can be made here",
    "no GPU: ",
)

# Set before torch, wandb, ray and matplotlib are imported, because they read it on import. pytest-xdist uses all cores
# already, and tests must not send runs to W&B if its key is in the environment.
os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", RAY_USAGE_STATS_ENABLED="0", MPLBACKEND="Agg")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those of `make gpu`, so that the others compute the same on every machine."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def fail_forbidden_skip(report: Any) -> Any:
    """Return the report, changed to failed if CI does not accept the skip."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = (
                f"skipped in CI: {reason}\nInstall what it needs in .ci/run, or add the reason to ALLOWED_SKIPS in "
                "tests/conftest.py."
            )
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose skip CI does not accept."""
    return fail_forbidden_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file whose skip CI does not accept."""
    return fail_forbidden_skip((yield))


@pytest.fixture(scope="session")
def speech_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of real speech in mode 1300: 40 s and 30 s for training, 20 s for validation, 20 s for test."""
    # Imported here, after the environment is set.
    import soundfile
    from shard_folder import write_folder

    from babble.codec.codec2 import encode_pcm
    from babble.codec.frames import MODES, unpack_packets

    mode, folder = MODES["1300"], tmp_path_factory.mktemp("shards")
    seconds = {
        "train": {"allison-01": 40, "allison-02": 30},
        "validation": {"allison-07": 20},
        "test": {"allison-08": 20},
    }

    def read_frames(name: str, length: int) -> "np.ndarray":
        pcm, rate = soundfile.read(
            Path(__file__).parent / "speech" / f"{name}.ogg", frames=length * 8000, dtype="int16"
        )
        assert rate == 8000
        return unpack_packets(encode_pcm(pcm, mode), mode)

    splits = {split: {n: read_frames(n, length) for n, length in lengths.items()} for split, lengths in seconds.items()}
    write_folder(folder, mode, splits)
    return folder


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trainings write empty pictures: plots take most of the time of a small one."""
    from PIL import Image

    from babble.training import samples

    for name in ("plot_speech", "plot_progression"):
        monkeypatch.setattr(samples, name, lambda *args, **options: None)
    monkeypatch.setattr(samples, "save_figure", lambda figure, path: Image.new("P", (1, 1)).save(path))


@pytest.fixture
def recogniser(tmp_path: Path) -> Path:
    """Return the file of a recogniser whose letters depend on the energy alone: 0 a blank, 1 a space, 2 "a"..."""
    import gzip

    import torch

    from babble.evaluation.words import _Network

    network = _Network(width=29, layers=1)
    for parameter in network.parameters():
        parameter.data.zero_()
    weights = network.state_dict()
    energy = int(network.first_row[5])
    weights["table.weight"][energy : energy + 29] = 50 * torch.eye(29)
    # Without weights an LSTM gives zeros; this one passes its input on through the candidate, with open gates.
    weights["lstm.0.weight_ih_l0"][2 * 29 : 3 * 29] = torch.eye(29)
    weights["lstm.0.bias_ih_l0"][:] = 50.0
    weights["lstm.0.bias_ih_l0"][29 : 2 * 29] = -50.0
    weights["lstm.0.bias_ih_l0"][2 * 29 : 3 * 29] = 0.0
    for slot in range(2):
        weights["out.weight"][slot * 29 : (slot + 1) * 29, :29] = 10 * torch.eye(29)
    path = tmp_path / "recogniser.pt"
    torch.save({"shape": {"width": 29, "layers": 1}, "weights": weights}, path)
    with gzip.open(tmp_path / "english.txt.gz", "wt") as file:
        file.write("mister\nsaid\nlorry\n")
    with gzip.open(tmp_path / "aligned.tsv.gz", "wt") as file:
        file.write("1\t0\t9\tmister lorry said\n13\t0\t9\theld out words\n")
    return path
