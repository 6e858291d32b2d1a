"""Edits of speech frames that show what each group of fields contributes: flat pitch, louder speech, a whisper.

    edits = parse_edits("pitch=flat:120,lsp=mean", mode)
    frames = apply_edits(frames, edits, mode)

The edits, as `--what-if` takes them, separated by commas:

    pitch=flat:120    all at 120 Hz                        pitch=mean     all at the mean pitch
    pitch=scale:1.2   higher by 20 %                       lsp=scale:1.1  formants higher by 10 %
    energy=+6dB       louder, or softer with -6dB          energy=flat:25, energy=mean
    lsp=mean          the mean spectrum in every frame
    voicing=off       a whisper                            voicing=on     a buzz

Values are rounded to the nearest level. Fields of other groups stay unchanged.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from babble.codec.frames import Group, Mode, energy_db, is_voiced, lsp_hz, pitch_hz

# The factors that an edit may scale by: two octaves down and up.
SCALES = (0.25, 4.0)
UNITS = {"pitch": "Hz", "energy": "dB"}
FORMS = {
    "pitch": "pitch=flat:120 (Hz), pitch=scale:1.2 or pitch=mean",
    "energy": "energy=+6dB, energy=-6dB, energy=flat:25 (dB) or energy=mean",
    "lsp": "lsp=scale:1.1 or lsp=mean",
    "voicing": "voicing=off or voicing=on",
}


@dataclass(frozen=True)
class Edit:
    """A change of one group of fields.

    Attributes:
        group: the group that changes.
        kind: "flat", "shift" and "scale" use an amount; "mean", "on" and "off" do not.
        amount: Hz for flat pitch, dB for energy, a factor for "scale".
    """

    group: Group
    kind: Literal["flat", "shift", "scale", "mean", "on", "off"]
    amount: float = 0.0


def parse_edits(text: str, mode: Mode) -> tuple[Edit, ...]:
    """Return the edits in a text such as "pitch=flat:120,lsp=mean".

    Raises:
        ValueError: an unknown edit, a group that is named twice, that this mode does not have or codes as a label, or a
            value out of range.
    """
    edits = tuple(_parse_edit(part.strip(), text) for part in text.split(","))
    groups = [edit.group for edit in edits]
    for edit in edits:
        if groups.count(edit.group) > 1:
            raise ValueError(f"--what-if {text}: {edit.group} is named {groups.count(edit.group)} times; name it once.")
        columns = mode.group_indices(edit.group)
        if not columns or any(mode.fields[f].kind == "label" for f in columns):
            found = "codes it as a label, which has no neighbouring levels" if columns else "has no fields for it"
            raise ValueError(f"--what-if {text}: {edit.group} can't be changed in mode {mode.name}, which {found}.")
        if edit.kind == "scale" and not SCALES[0] <= edit.amount <= SCALES[1]:
            raise ValueError(f"--what-if {text}: a scale must be from {SCALES[0]:g} to {SCALES[1]:g}.")
        if edit.kind == "scale" and edit.group == "lsp" and mode.name == "3200":
            raise ValueError(f"--what-if {text}: mode 3200 codes differences of LSPs, which can't be scaled.")
        if edit.kind == "flat":
            values_V = _level_values(edit.group, mode)
            low, high = np.nanmin(values_V), np.nanmax(values_V)
            if not low <= edit.amount <= high:
                unit = UNITS[edit.group]
                raise ValueError(
                    f"--what-if {text}: {edit.group} in mode {mode.name} must be from {low:g} to {high:g} {unit}."
                )
    return edits


def _parse_edit(part: str, text: str) -> Edit:
    number = r"([+-]?\d+(?:\.\d+)?)"
    if match := re.fullmatch(rf"(pitch|energy)=flat:{number}", part):
        return Edit(cast(Group, match[1]), "flat", float(match[2]))
    if match := re.fullmatch(rf"energy=(?=[+-]){number}dB", part):
        return Edit("energy", "shift", float(match[1]))
    if match := re.fullmatch(rf"(pitch|lsp)=scale:{number}", part):
        return Edit(cast(Group, match[1]), "scale", float(match[2]))
    if match := re.fullmatch(r"(pitch|energy|lsp)=mean", part):
        return Edit(cast(Group, match[1]), "mean")
    if part in ("voicing=on", "voicing=off"):
        return Edit("voicing", "on" if part == "voicing=on" else "off")
    group = part.partition("=")[0]
    known = [FORMS[group]] if group in FORMS else list(FORMS.values())
    raise ValueError(f"--what-if {text}: {part!r} must be one of: {'; '.join(known)}.")


def _level_values(group: str, mode: Mode) -> np.ndarray:
    """Return the value of each level of pitch or energy, in Hz or dB (V,); NaN for a level that means unvoiced."""
    columns = mode.group_indices(group)
    frames = np.zeros((mode.fields[columns[-1]].levels, mode.num_fields), np.int64)
    frames[:, mode.group_indices("voicing")] = 1
    frames[:, columns] = np.arange(len(frames))[:, None]
    values = (pitch_hz if group == "pitch" else energy_db)(frames, mode)
    assert values is not None
    return values


def apply_edits(frames: np.ndarray, edits: tuple[Edit, ...], mode: Mode) -> np.ndarray:
    """Return a copy of frames (T, F) with the edits applied.

    Values are rounded to the nearest level and clipped to the range of levels. A mean is taken over these frames, that
    of pitch over the voiced frames; if none is voiced, pitch stays unchanged.
    """
    changed = frames.copy()
    for edit in edits:
        columns = mode.group_indices(edit.group)
        if edit.group == "voicing":
            changed[:, columns] = int(edit.kind == "on")
        elif edit.group == "lsp" and edit.kind == "scale":
            changed[:, columns] = _scale_lsps(frames, edit.amount, mode)
        elif edit.group == "lsp":
            changed[:, columns] = np.rint(frames[:, columns].mean(axis=0))
        else:
            changed[:, columns] = _new_levels(frames, edit, mode)
    return changed


def _scale_lsps(frames: np.ndarray, factor: float, mode: Mode) -> np.ndarray:
    """Return the levels (T, columns) of the LSPs nearest to `factor` times the frequencies of the frames."""
    columns = mode.group_indices("lsp")
    lowest, next_lowest = (np.full((1, mode.num_fields), level) for level in (0, 1))
    hz, first, second = (lsp_hz(some, mode) for some in (frames, lowest, next_lowest))
    assert hz is not None
    assert first is not None
    assert second is not None
    return np.clip(np.rint((hz * factor - first) / (second - first)), 0, mode.levels[columns] - 1)


def _new_levels(frames: np.ndarray, edit: Edit, mode: Mode) -> np.ndarray:
    """Return the levels (T, columns) of pitch or energy after an edit."""
    values_V = _level_values(edit.group, mode)
    levels = frames[:, mode.group_indices(edit.group)]
    now = values_V[levels]
    if edit.kind == "shift":
        wanted = now + edit.amount
    elif edit.kind == "scale":
        wanted = now * edit.amount
    elif edit.kind == "flat":
        wanted = np.full(now.shape, edit.amount)
    else:
        is_used = is_voiced(frames, mode) if edit.group == "pitch" else np.ones(len(frames), bool)
        if not is_used.any():
            return levels
        wanted = np.full(now.shape, np.nanmean(now[is_used]))
    # In mode 700C a level of pitch means "unvoiced" and has no value; an edit of pitch does not change voicing.
    distances = np.nan_to_num(np.abs(wanted[..., None] - values_V), nan=np.inf)
    nearest = distances.argmin(axis=-1)
    return np.where(np.isnan(now), levels, nearest)
