"""The voice that comes with babble: it is small, it is heard when no run is named, and it speaks."""

from pathlib import Path

import numpy as np
import torch

from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES
from babble.data.shards import read_manifest, read_recordings
from babble.evaluation.speech_statistics import find_pause_db, measure_clip
from babble.generate import VOICE, GenerateConfig, generate
from babble.run_folder import RunFolder

MODE = MODES["1300"]


def test_it_is_a_few_megabytes_of_plain_weights_and_says_how_it_was_trained():
    path = RunFolder(VOICE).checkpoint("best")
    assert path.stat().st_size < 10e6
    kept = torch.load(path, weights_only=True)
    assert kept["trained"]["model"] == kept["hyper_parameters"]["model"]
    assert kept["hyper_parameters"]["mode"] == "1300"


def test_without_a_run_it_speaks_and_no_guard_fires(speech_shards: Path, tmp_path: Path):
    out = tmp_path / "babble.wav"
    (facts,) = generate(GenerateConfig(seconds=60, out=str(out)))
    assert facts["alarms"] == []
    frames, mode = read_c2(out.with_suffix(".c2"))
    assert (mode, len(frames)) == (MODE, 25 + 1500)
    speech = [r.frames for r in read_recordings(speech_shards, read_manifest(speech_shards), "train")]
    measures = measure_clip(frames[25:], MODE, find_pause_db(speech, MODE))
    # Wide margins around real narration: a drone, a pulse, noise or silence lie far outside of them.
    assert 1.9 < measures["change_levels"] < 2.9
    assert measures["lsp_disorder"] < 0.01
    assert 0.4 < measures["voiced"] < 0.85
    assert measures["repeated_frames"] < 0.05
    assert len(np.unique(frames, axis=0)) > 1400
