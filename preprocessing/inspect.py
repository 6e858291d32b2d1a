"""Facts of one recording: of its PCM while it is read, and of its frames once it is encoded.

The manifest lists them for each recording. They show a level that is too high, a recording that is mostly pauses, or
one that is not speech.
"""

import math
from dataclasses import dataclass

import numpy as np

from babble.codec.frames import SAMPLE_RATE_HZ, Mode, energy_db, has_disordered_lsps, is_voiced, pitch_hz

# 20 ms: shorter than the pause between two words.
ROW_VALUES = SAMPLE_RATE_HZ // 50
# Rows below this are pauses; narration is 20 to 40 dB louder.
PAUSE_DBFS = -50.0


@dataclass(frozen=True)
class PcmFacts:
    """Level of a recording at 8 kHz, after the gain.

    Attributes:
        seconds: its length.
        peak_dbfs: its peak in dB of full scale; above 0 if it was clipped, -inf for digital silence.
        clipped: share of values that were clipped: here, or before in the file, where they lie at full scale.
        pauses: share of 20 ms rows below `PAUSE_DBFS`.
        speech_dbfs: root mean square of the other rows; None if there are none.
    """

    seconds: float
    peak_dbfs: float
    clipped: float
    pauses: float
    speech_dbfs: float | None


def _db(ratio: float) -> float:
    return round(10 * math.log10(ratio), 1) if ratio > 0 else -math.inf


class PcmMeter:
    """Measures PCM block by block."""

    def __init__(self) -> None:
        self._values = self._clipped = self._rows = self._speech_rows = 0
        self._file_values = self._file_clipped = 0
        self._peak = self._speech_power = 0.0

    def count_clipped(self, values: np.ndarray) -> None:
        """Count clipped values (N,) at the rate of the file, with full scale at 32768."""
        self._file_values += len(values)
        if max(values.max(), -values.min()) >= 32766:
            self._file_clipped += int(np.count_nonzero(np.abs(values) >= 32766))

    def add(self, pcm: np.ndarray) -> None:
        """Add one block, float32 (N,) with full scale at 32768, before it is clipped."""
        self._values += len(pcm)
        peak = float(max(pcm.max(), -pcm.min()))
        self._peak = max(self._peak, peak)
        if peak > 32767:
            self._clipped += int(np.count_nonzero(np.abs(pcm) > 32767.5))
        rows = pcm[: len(pcm) // ROW_VALUES * ROW_VALUES].reshape(-1, ROW_VALUES)
        power = np.einsum("rv,rv->r", rows, rows) / (ROW_VALUES * 32768.0**2)
        is_speech = power > 10 ** (PAUSE_DBFS / 10)
        self._rows += len(rows)
        self._speech_rows += int(is_speech.sum())
        self._speech_power += float(power[is_speech].sum())

    def facts(self) -> PcmFacts:
        """Return the facts of all blocks so far."""
        return PcmFacts(
            seconds=self._values / SAMPLE_RATE_HZ,
            peak_dbfs=_db((self._peak / 32768) ** 2),
            clipped=round(max(self._clipped / max(1, self._values), self._file_clipped / max(1, self._file_values)), 6),
            pauses=round(1 - self._speech_rows / max(1, self._rows), 4),
            speech_dbfs=_db(self._speech_power / self._speech_rows) if self._speech_rows else None,
        )


def frame_facts(frames: np.ndarray, mode: Mode) -> dict[str, float]:
    """Return facts of the speech in frames (T, F); those that the mode's fields do not give are omitted.

    Returns:
        voiced: share of voiced frames.
        pitch_hz: median pitch of the voiced frames.
        energy_db: mean energy.
        energy_at_ceiling: share of frames with the highest level of energy: the input was too loud for the codec.
        lsp_disorder: share of frames with LSPs out of order, which is rare in speech.
    """
    voiced = is_voiced(frames, mode)
    facts = {"voiced": round(float(voiced.mean()), 4)}
    pitch, energy, disordered = pitch_hz(frames, mode), energy_db(frames, mode), has_disordered_lsps(frames, mode)
    if pitch is not None and voiced.any():
        facts["pitch_hz"] = round(float(np.nanmedian(pitch)), 1)
    if energy is not None:
        facts["energy_db"] = round(float(energy.mean()), 2)
        column = mode.group_indices("energy")[-1]
        facts["energy_at_ceiling"] = round(float((frames[:, column] == mode.levels[column] - 1).mean()), 5)
    if disordered is not None:
        facts["lsp_disorder"] = round(float(disordered.mean()), 6)
    return facts
