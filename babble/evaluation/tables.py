"""Evaluations as text for a terminal: metrics with their baselines, speech statistics, classifier accuracies."""

import textwrap
from typing import Any

from babble.codec.token_sequences import name_frame
from babble.evaluation.speech_statistics import REAL

# Each statistic as the table shows it: label, factor, decimals.
STATISTICS = {
    "change_levels": ("change, levels/frame", 1, 2),
    "changed_fields": ("changed fields, %", 100, 1),
    "repeated_frames": ("repeated frames, %", 100, 1),
    "lsp_disorder": ("LSPs out of order, %", 100, 2),
    "energy_db": ("energy, dB", 1, 1),
    "energy_spread_db": ("  deviation, dB", 1, 1),
    "voiced": ("voiced, %", 100, 1),
    "voiced_run_median_s": ("voiced run, median s", 1, 2),
    "voiced_run_longest_s": ("  longest s", 1, 2),
    "pauses": ("pauses, %", 100, 1),
    "pause_median_s": ("  median s", 1, 2),
    "pause_longest_s": ("  longest s", 1, 2),
    "pitch_hz": ("pitch, median Hz", 1, 0),
    "pitch_range_semitones": ("  range, semitones", 1, 1),
    "pitch_step_semitones": ("  steps, semitones", 1, 2),
    "phones_per_second": ("phones per second", 1, 2),
    "distance": ("Frechet distance", 1, 2),
    "copied": ("copied, %", 100, 2),
    "alarms_per_ten_minutes": ("alarms in 10 minutes", 1, 1),
    "time_in_alarm": ("time in alarm, %", 100, 1),
}
LABEL_WIDTH, CELL_WIDTH = 21, 20


def format_evaluation(evaluation: dict[str, Any]) -> str:
    """Return what `babble.evaluate.evaluate` returned as lines for a terminal."""
    held_out, train = evaluation["held_out"], evaluation["train"]
    amount = f"a sample of {train['hours']:.2f} of the" if train["is_sample"] else "all"
    source = f"from {amount} {train['split_hours']:.2f} hours of the training split"
    frame = name_frame(evaluation["mode"])
    lines = [
        f"{evaluation['checkpoint']} (epoch {evaluation['epoch']}, step {evaluation['step']})",
        f"{evaluation['split']} split of {evaluation['shards']}: {evaluation['hours']:.2f} hours, "
        f"recordings: {len(evaluation['recordings'])}",
        f"baselines: {source if evaluation['baselines'] else 'none, as there is no training split'}",
    ]
    for total, unit, part in (
        ("error_levels", "mean absolute error, levels", "error"),
        ("bits_per_frame", f"bits per {frame}", "bits"),
        ("bits_per_frame_without_unvoiced_pitch", "bits per frame without the pitch of unvoiced frames", None),
    ):
        if total in held_out:
            rows = {name: metrics for name, metrics in evaluation["baselines"].items() if total in metrics}
            lines += [f"\n{unit}", *_format_metric({**rows, "this network": held_out}, total, part)]
    if "context" in evaluation:
        lines += ["", *_format_context(evaluation["context"], frame)]
    if "tokens" in evaluation:
        lines += ["", *_format_tokens(evaluation["tokens"])]
    if "speech" in evaluation:
        settings = ", ".join(f"{key} {value}" for key, value in evaluation["babble"].items() if value is not None)
        lines += [
            f"\nbabble: {settings}",
            format_statistics(evaluation["speech"]["statistics"]),
            "",
            *_format_accuracies(evaluation["speech"]["classifier"]),
        ]
    if "words" in evaluation:
        lines += ["", *_format_words(evaluation["words"])]
    if "training_error_2017" in evaluation:
        lines.append(
            f"\n{evaluation['training_error_2017']:10.3f}  training error of 2017, levels: the last frame of windows "
            "that the network was trained on. It measures memory."
        )
    return "\n".join(lines)


def _format_metric(rows: dict[str, dict[str, Any]], total: str, part: str | None) -> list[str]:
    """Return a line per predictor; then, of the metrics named after `part`, a line per group and one per field."""
    lines = []
    for name, metrics in rows.items():
        interval = metrics.get("intervals", {}).get(total)
        lines.append(
            f"  {metrics[total]:8.3f}  {name}" + (f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
        )
    if part is None:
        return lines
    *_, network = rows.values()
    lines += [
        f"    {network[name]:8.3f}  {name.removeprefix(f'{part}/')}" for name in network if name.startswith(f"{part}/")
    ]
    lines.append(f"    by field: {'; '.join(rows)}")
    by_field = [metrics[f"{part}_by_field"] for metrics in rows.values()]
    for field in by_field[0]:
        lines.append(f"    {field:>8s}" + "".join(f"{column[field]:9.3f}" for column in by_field))
    return lines


def _format_tokens(tokens: dict[str, Any]) -> list[str]:
    """Return the metrics of the level above the frame."""
    lines = [
        "tokens; the bits per frame above are those given the tokens",
        f"  {tokens['bits_per_token']:8.3f}  bits per token, {tokens['tokens_per_second']:.1f} tokens per second",
        f"  {tokens['bits_per_frame_bound']:8.3f}  bits per frame of tokens and frames together, an upper bound",
    ]
    return lines + (_format_context(tokens["context"], "token") if "context" in tokens else [])


def _format_context(context: dict[str, Any], unit: str) -> list[str]:
    lines = []
    for key, value, title in (
        (
            "reach",
            "bits_per_frame",
            f"bits per {unit} saved by true context, compared with other speech up to this long before",
        ),
        ("continuation", "accuracy", "accuracy of choosing the true continuation (0.5 = chance), by its length"),
    ):
        lines.append(title)
        lines += [
            f"  {seconds:>5s} s  {row[value]:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            for seconds, row in context[key].items()
        ]
    return lines


def _format_words(words: dict[str, dict[str, Any]]) -> list[str]:
    columns = {"word_bits": "word bits per letter", "long_words": "long words per min", "book_triples": "book triples"}
    lines = [
        "words, as a recogniser spells them, with 95 % intervals; place: 0 is a quilt without words, 1 is real speech",
        " " * 20 + "".join(f"{title:>26s}" for title in ("place", *columns.values())),
    ]
    for name, row in words.items():
        bits = row["word_bits"]
        cells = [f"{bits['place']:.2f} ({bits['place_low']:.2f} to {bits['place_high']:.2f})" if bits else "no words"]
        cells += [
            f"{row[key]['mean']:.3f} ({row[key]['low']:.3f} to {row[key]['high']:.3f})" if row[key] else "no words"
            for key in columns
        ]
        lines.append(f"  {name:18s}" + "".join(f"{cell:>26s}" for cell in cells))
    return lines


def _format_accuracies(accuracies: dict[str, dict[str, Any]]) -> list[str]:
    seconds = next(iter(accuracies.values()))
    lines = ["classifier accuracy against held-out speech (0.5 = chance), with its 95 % interval, by length of clip"]
    lines.append(" " * 20 + "".join(f"{f'{length} s':>22s}" for length in seconds))
    for name, by_length in accuracies.items():
        cells = [
            f"{accuracy['accuracy']:.3f} ({accuracy['low']:.3f}-{accuracy['high']:.3f})" if accuracy else "too short"
            for accuracy in by_length.values()
        ]
        lines.append(f"  {name:18s}" + "".join(f"{cell:>22s}" for cell in cells))
    return lines


def format_statistics(result: dict[str, Any]) -> str:
    """Return the result of `measure_speech` as lines for a terminal: a row per statistic, a column per set."""
    names = list(result["clips"])
    headings = [textwrap.wrap(name, CELL_WIDTH - 2) for name in names]
    lines = [
        f"Speech statistics: mean over clips of {result['clip_seconds']:g} s, 10th..90th percentile; "
        f"! marks means outside that range of {REAL}."
    ]
    for i in range(max(map(len, headings))):
        lines.append(_format_row("", [heading[i] if i < len(heading) else "" for heading in headings]))
    lines.append(_format_row("clips", [str(count) for count in result["clips"].values()]))
    for statistic, (label, scale, decimals) in STATISTICS.items():
        if statistic in result["measures"]:
            by_set, within = result["measures"][statistic], result["within"][statistic]
            cells = [_format_spread(by_set[name], within.get(name, True), scale, decimals) for name in names]
            lines.append(_format_row(label, cells))
        elif statistic in result["sets"]:
            values = [result["sets"][statistic][name] for name in names]
            cells = ["-" if value is None else f"{scale * value:.{decimals}f}" for value in values]
            lines.append(_format_row(label, cells))
    if result["drift"]:
        lines.append("drift per minute (last minute minus first)")
        for statistic in next(iter(result["drift"].values())):
            label, scale, decimals = STATISTICS[statistic]
            drifts = [result["drift"].get(name, {}).get(statistic) for name in names]
            lines.append(_format_row(label, [_format_drift(drift, scale, decimals) for drift in drifts]))
    for title, reasons in (("omitted in this mode", result["omitted"]), ("not measured", result["missing"])):
        for reason in dict.fromkeys(reasons.values()):
            lines.append(f"{title}: {', '.join(name for name in reasons if reasons[name] == reason)} ({reason})")
    return "\n".join(lines)


def _format_row(label: str, cells: list[str]) -> str:
    return (f"{label:{LABEL_WIDTH}}" + "".join(f"{cell:{CELL_WIDTH}}" for cell in cells)).rstrip()


def _format_spread(spread: dict[str, float] | None, is_within: bool, scale: int, decimals: int) -> str:
    if spread is None:
        return "-"
    mean, low, high = (f"{scale * spread[key]:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean}{'' if is_within else '!'} {low}..{high}"


def _format_drift(drift: dict[str, float | None] | None, scale: int, decimals: int) -> str:
    if drift is None or drift["per_minute"] is None or drift["last_minus_first"] is None:
        return "-"
    return f"{scale * drift['per_minute']:+.{decimals}f} ({scale * drift['last_minus_first']:+.{decimals}f})"
