"""The bundled voice: small, documented, and free of failures."""

from pathlib import Path

import numpy as np
import torch

from babble.codec.codec2 import read_c2
from babble.codec.frames import MODES
from babble.data.shards import read_manifest, read_recordings
from babble.evaluation.clips import find_pause_db, measure_clip
from babble.generate import GenerateConfig, generate
from babble.run_folder import PRETRAINED, RunFolder

MODE = MODES["1300"]


def test_the_bundled_voice_is_a_few_megabytes_of_plain_weights_with_a_model_card():
    path = RunFolder(PRETRAINED).checkpoint("best")
    assert path.stat().st_size < 10e6
    kept = torch.load(path, weights_only=True)
    assert kept["trained"]["model"] == kept["hyper_parameters"]["model"]
    assert kept["hyper_parameters"]["mode"] == "1300"
    card = (PRETRAINED / "README.md").read_text(encoding="utf-8")
    assert f"{sum(value.numel() for value in kept['state_dict'].values()) / 1e6:.1f} million weights" in card


def test_a_minute_of_the_bundled_voice_has_the_statistics_of_speech_and_no_alarm(speech_shards: Path, tmp_path: Path):
    out = tmp_path / "babble.wav"
    (facts,) = generate(GenerateConfig(seconds=60, out=str(out)))
    assert facts["alarms"] == []
    frames, mode = read_c2(out.with_suffix(".c2"))
    assert (mode, len(frames)) == (MODE, 25 + 1500)
    speech = [r.frames for r in read_recordings(speech_shards, read_manifest(speech_shards), "train")]
    statistics = measure_clip(frames[25:], MODE, find_pause_db(speech, MODE))
    # Wide margins around real narration: a drone, a pulse, noise or silence lie far outside of them.
    assert 1.9 < statistics["change_levels"] < 2.9
    assert statistics["lsp_disorder"] < 0.01
    assert 0.4 < statistics["voiced"] < 0.85
    assert statistics["repeated_frames"] < 0.05
    assert len(np.unique(frames, axis=0)) > 1400
