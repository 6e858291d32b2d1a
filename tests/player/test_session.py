"""A session: blocks without end, changes that act on the next block, prompts, other voices, the last minute."""

import io
import json
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
from player.conftest import write_voice

from babble.codec.codec2 import parse_c2
from babble.codec.failures import Alarm
from babble.codec.frames import get_mode, unpack_packets
from babble.generation.free_run import FreeRun, choose_sampling
from babble.generation.prompts import Prompt
from babble.player.session import Session, Settings, Voices
from babble.run_folder import PRETRAINED

MODE = get_mode("1300")


def saved(session: Session) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return pcm, frames and settings of the last minute."""
    with zipfile.ZipFile(io.BytesIO(session.save())) as archive:
        assert archive.namelist() == ["babble.wav", "babble.c2", "settings.json"]
        packets, mode = parse_c2(archive.read("babble.c2"), "saved")
        with wave.open(io.BytesIO(archive.read("babble.wav"))) as wav:
            pcm = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
        return pcm, unpack_packets(packets, mode), json.loads(archive.read("settings.json"))


def test_voices_are_the_named_one_the_bundled_one_and_those_of_the_run_folder(runs: Path) -> None:
    assert Voices(runs / "low-rate", runs).names == ["low-rate", "bundled voice", "ann", "drone"]
    assert Voices(PRETRAINED, runs / "nothing").names == ["bundled voice"]


def test_a_voice_whose_name_is_taken_is_named_by_its_path(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_voice(tmp_path / "ann", head="regression")
    voices = Voices(other, runs)
    assert voices.names == ["ann", "bundled voice", str(runs / "ann"), "drone", "low-rate"]
    assert voices.load("ann")[1].path == other
    assert voices.load(str(runs / "ann"))[1].path == runs / "ann"
    monkeypatch.chdir(other)
    assert Voices(Path(), runs / "nothing").names == ["ann", "bundled voice"]
    (tmp_path / "ann" / "checkpoints" / "best.ckpt").write_bytes(b"damaged")
    assert Voices(PRETRAINED, tmp_path).names == ["bundled voice", "ann"]


def test_blocks_continue_one_another_as_one_free_run(voices: Voices) -> None:
    session = Session(voices, seed=3)
    blocks = [session.next_block() for _ in range(4)]
    assert [len(block.pcm) for block in blocks] == [960] * 4
    assert [len(block.pitch_hz) for block in blocks] == [3] * 4
    model, _, _ = voices.load("ann")
    prompt = session.find_prompt("silence").frames
    one = FreeRun(model, prompt[None], choose_sampling(model, "1", "1", "0"), seed=4).make_block(12)[0]
    assert (saved(session)[1] == one).all()


def test_a_change_acts_on_the_next_block(voices: Voices) -> None:
    session = Session(voices)
    before = [session.next_block() for _ in range(20)]
    assert max(pitch for block in before for pitch in block.pitch_hz) > 0
    session.change(Settings(what_if="voicing=off,energy=flat:25"))
    after = [session.next_block() for _ in range(20)]
    assert {pitch for block in after for pitch in block.pitch_hz} == {0}
    assert len({energy for block in after for energy in block.energy_db}) == 1
    frames = saved(session)[1]
    # What the network receives is not edited.
    assert frames[-60:, :4].any()
    session.change(Settings(temperature="0.01"))
    first = [session.next_block() for _ in range(4)]
    assert len(first) == 4
    assert saved(session)[2]["temperature"] == "0.01"


def test_settings_that_are_wrong_leave_the_old_ones(voices: Voices) -> None:
    session = Session(voices)
    for wrong in (Settings(temperature="0"), Settings(what_if="loud=3"), Settings(top_p="pitch=2")):
        with pytest.raises(ValueError, match="must be"):
            session.change(wrong)
    assert session.settings == Settings()
    session.next_block()


def test_a_prompt_is_continued_and_a_long_one_cut_to_its_end(voices: Voices) -> None:
    session = Session(voices)
    frames = np.random.default_rng(0).integers(0, MODE.levels, (2000, 16)).astype(np.uint8)
    session.continue_from(Prompt(frames, "noise"))
    assert session.describe()["prompt"] == "noise"
    model, _, _ = voices.load("ann")
    seed = session._seed
    one = FreeRun(model, frames[None, -750:], choose_sampling(model, "1", "1", "0"), seed).make_block(3)[0]
    session.next_block()
    assert (saved(session)[1] == one).all()
    with pytest.raises(ValueError, match="nothing: no speech to continue"):
        session.continue_from(Prompt(frames[:0], "nothing"))
    session.choose_voice("low-rate")
    with pytest.raises(ValueError, match="noise was read for another voice: choose it again"):
        session.continue_from(Prompt(frames, "noise"))
    session.next_block()


def test_another_voice_continues_what_was_played(voices: Voices) -> None:
    session = Session(voices)
    session.next_block()
    session.choose_voice("bundled voice")
    assert session.describe()["prompt"] == "what was played before"
    assert len(saved(session)[1]) == 3
    session.change(Settings(what_if="voicing=off", temperature="pitch=0.5"))
    session.choose_voice("low-rate")
    about = session.describe()
    assert (about["mode"], about["prompt"], about["edits"]) == ("700C", "silence", ["pitch", "energy"])
    # Neither setting exists there.
    assert session.settings == Settings()
    assert len(session.next_block().pcm) == 3 * 320
    session.choose_voice("drone")
    assert session.describe()["groups"] == []
    session.next_block()
    with pytest.raises(ValueError, match="there is no voice 'nobody'; there are ann, bundled voice, drone, low-rate"):
        session.choose_voice("nobody")


def test_the_last_minute_is_kept(voices: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("babble.player.session.KEPT_SECONDS", 1)
    session = Session(voices)
    assert (len(saved(session)[0]), len(saved(session)[1])) == (0, 0)
    blocks = [session.next_block().pcm for _ in range(20)]
    pcm, frames, settings = saved(session)
    assert (len(pcm), len(frames)) == (8 * 960, 24)
    assert (pcm == np.concatenate(blocks[-8:])).all()
    assert settings["voice"] == "ann"
    assert settings["prompt"] == "silence"


def test_the_guard_restarts_a_voice_that_fails(voices: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Alarm("silence", 0, 100, 0)]
    monkeypatch.setattr("babble.codec.failures.Guard.update", lambda self, frames: found)
    started = []
    monkeypatch.setattr("babble.generation.free_run.FreeRun.start_over", lambda self, stream: started.append(stream))
    session = Session(voices)
    assert session.next_block().alarms == ["silence"]
    session.change(Settings(guard=False))
    assert session.next_block().alarms == []
    assert started == [0]
