"""What holds for every test: one thread a process, nothing sent anywhere, and in CI no skip that is not on the list."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# In CI a test that does not run proves nothing, so a skip for any other reason fails there. A reason starts so:
ALLOWED_SKIPS = (
    "the Tale corpus is not at hand",
    "the Margot corpus is not at hand",
    "not on this machine: CUDA",
    "not on this machine: bfloat16",
    "no Slurm cluster can be made here",
)

# Set before torch, wandb, ray and matplotlib are imported, as they look once. Tests run on all cores already, and
# whoever runs them with a key of W&B in the environment does not mean to send runs.
os.environ.update(OMP_NUM_THREADS="1", WANDB_MODE="offline", RAY_USAGE_STATS_ENABLED="0", MPLBACKEND="Agg")


def fail_forbidden_skip(report: Any) -> Any:
    """Return the report, failed where CI must not skip."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        assert isinstance(report.longrepr, tuple)
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = (
                f"skipped in CI: {reason}\nInstall what it needs in .ci/run, or put the reason into ALLOWED_SKIPS of "
                "tests/conftest.py."
            )
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that CI must not skip."""
    return fail_forbidden_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that CI must not skip as a whole."""
    return fail_forbidden_skip((yield))


@pytest.fixture(scope="session")
def speech_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards in mode 1300 from real speech: 40 s and 30 s to learn from, 20 s for validation, 20 s test."""
    # Imported here: the environment above has to be set first.
    import soundfile

    from babble.codec.codec2 import encode_pcm
    from babble.codec.frames import MODES, unpack_packets
    from babble.data.shards import Manifest, Segment, write_manifest, write_shards

    mode, folder = MODES["1300"], tmp_path_factory.mktemp("shards")
    speech = Path(__file__).parent / "speech"
    lengths = {"allison-01": ("train", 40), "allison-02": ("train", 30), "allison-07": ("validation", 20)}
    shards, recordings = [], []
    for split in ("train", "validation", "test"):
        chosen = [name for name, (part, _) in lengths.items() if part == split] or ["allison-08"]
        segments = []
        for name in chosen:
            seconds = lengths.get(name, ("test", 20))[1]
            pcm, rate = soundfile.read(speech / f"{name}.ogg", frames=seconds * 8000, dtype="int16")
            assert rate == 8000
            segments.append(Segment(name, 0, unpack_packets(encode_pcm(pcm, mode), mode)))
        shards += write_shards(folder, split, segments, mode, entries_per_shard=16)
        recordings += [
            {"name": s.recording, "split": split, "first_frame": 0, "frames": len(s.frames)} for s in segments
        ]
    write_manifest(folder, Manifest(mode, {}, recordings, shards, []))
    return folder
