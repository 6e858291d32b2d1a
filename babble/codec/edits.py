"""What if a field said something else: the same speech at one pitch, louder, with one spectrum, or as a whisper.

Rules name a group of fields and what becomes of it, so that one hears what the group carries:

    pitch=flat:120    all at 120 Hz               pitch=mean     at the speech's own mean
    energy=+6dB       louder, or softer by -6dB   energy=flat:25, energy=mean
    lsp=mean          the mean spectrum in every frame
    voicing=off       a whisper                   voicing=on     a buzz

Several go together: "pitch=flat:120,lsp=mean". In: frames of any speech. Out: frames, of the nearest levels that there
are; fields of other groups stay as they are.
"""

import re
from dataclasses import dataclass

import numpy as np

from babble.codec.frames import Mode, energy_db, is_voiced, pitch_hz

UNITS = {"pitch": "Hz", "energy": "dB"}
FORMS = {
    "pitch": "pitch=flat:120 (Hz) or pitch=mean",
    "energy": "energy=+6dB, energy=-6dB, energy=flat:25 (dB) or energy=mean",
    "lsp": "lsp=mean",
    "voicing": "voicing=off or voicing=on",
}


@dataclass(frozen=True)
class Edit:
    """What becomes of a group of fields.

    Attributes:
        group: "pitch", "energy", "lsp" or "voicing".
        kind: "flat" and "shift" take an amount, "mean", "on" and "off" none.
        amount: Hz or dB.
    """

    group: str
    kind: str
    amount: float = 0.0


def parse_edits(text: str, mode: Mode) -> tuple[Edit, ...]:
    """Return the edits that a user's `--what-if` means.

    Raises:
        ValueError: a edit that can't be read, that this mode has no fields for or only labels, or a value that no level
            comes near.
    """
    edits = tuple(_read_rule(part.strip(), text) for part in text.split(","))
    for edit in edits:
        columns = mode.group_indices(edit.group)
        if not columns or any(mode.fields[f].kind == "label" for f in columns):
            found = "codes it as a label, which has no neighbours" if columns else "has no fields of it"
            raise ValueError(f"--what-if {text}: {edit.group} can't be changed in mode {mode.name}, which {found}.")
        if edit.kind == "flat":
            values_V = _values(edit.group, mode)
            low, high = np.nanmin(values_V), np.nanmax(values_V)
            if not low <= edit.amount <= high:
                unit = UNITS[edit.group]
                raise ValueError(
                    f"--what-if {text}: {edit.group} of mode {mode.name} goes from {low:g} to {high:g} {unit}."
                )
    return edits


def _read_rule(part: str, text: str) -> Edit:
    number = r"([+-]?\d+(?:\.\d+)?)"
    if match := re.fullmatch(rf"(pitch|energy)=flat:{number}", part):
        return Edit(match[1], "flat", float(match[2]))
    if match := re.fullmatch(rf"energy=(?=[+-]){number}dB", part):
        return Edit("energy", "shift", float(match[1]))
    if match := re.fullmatch(r"(pitch|energy|lsp)=(mean)|(voicing)=(on|off)", part):
        return Edit(match[1] or match[3], match[2] or match[4])
    group = part.partition("=")[0]
    known = [FORMS[group]] if group in FORMS else list(FORMS.values())
    raise ValueError(f"--what-if {text}: {part!r} can't be read; there is {'; '.join(known)}.")


def _values(group: str, mode: Mode) -> np.ndarray:
    """Return what each level of pitch or energy stands for, in Hz or dB (V,); NaN where it stands for none."""
    columns = mode.group_indices(group)
    frames = np.zeros((mode.fields[columns[-1]].levels, mode.num_fields), np.int64)
    frames[:, mode.group_indices("voicing")] = 1
    frames[:, columns] = np.arange(len(frames))[:, None]
    values = (pitch_hz if group == "pitch" else energy_db)(frames, mode)
    assert values is not None
    return values


def apply_edits(frames: np.ndarray, edits: tuple[Edit, ...], mode: Mode) -> np.ndarray:
    """Return a copy of frames (T, F) in which the edits hold.

    Values become those of the nearest level; what lies beyond the last level becomes that. A mean is taken over these
    frames, of pitch over the voiced ones alone; where none is, pitch stays.
    """
    changed = frames.copy()
    for edit in edits:
        columns = mode.group_indices(edit.group)
        if edit.group == "voicing":
            changed[:, columns] = int(edit.kind == "on")
        elif edit.group == "lsp":
            changed[:, columns] = np.rint(frames[:, columns].mean(axis=0))
        else:
            changed[:, columns] = _new_levels(frames, edit, mode)
    return changed


def _new_levels(frames: np.ndarray, edit: Edit, mode: Mode) -> np.ndarray:
    """Return the levels (T, columns) that a edit gives to pitch or energy."""
    values_V = _values(edit.group, mode)
    levels = frames[:, mode.group_indices(edit.group)]
    now = values_V[levels]
    if edit.kind == "shift":
        wanted = now + edit.amount
    elif edit.kind == "flat":
        wanted = np.full(now.shape, edit.amount)
    else:
        is_heard = is_voiced(frames, mode) if edit.group == "pitch" else np.ones(len(frames), bool)
        if not is_heard.any():
            return levels
        wanted = np.full(now.shape, np.nanmean(now[is_heard]))
    nearest = np.nanargmin(np.abs(wanted[..., None] - values_V), axis=-1)
    # A level that stands for no pitch says "unvoiced" (mode 700C): that is another field's matter.
    return np.where(np.isnan(now), levels, nearest)
