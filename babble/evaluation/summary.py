"""Evaluations as a flat dict of numbers, for the summary of a W&B run.

summary = summarize_evaluation(evaluation)
summary["evaluation/test/bits_per_frame"]
"""

from typing import Any

from babble.evaluation.baselines import baseline_lines
from babble.evaluation.speech_statistics import REAL


def summarize_evaluation(evaluation: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of what `babble.evaluate.evaluate` returned, by name.

    Names start with "evaluation/SPLIT/". Then come a held-out metric, such as "bits_per_frame" or "error/pitch"; a
    baseline, such as "baseline/bits_per_frame/bigram"; "context_reach/1_s", in bits per frame, and
    "continuation_accuracy/2_s"; "classifier_accuracy/4_s"; "words/place"; or the mean of a speech statistic,
    "babble/pitch_hz" and "real/pitch_hz". Metrics by field are omitted.
    """
    numbers = {name: value for name, value in evaluation["held_out"].items() if isinstance(value, float)}
    numbers |= baseline_lines(evaluation["baselines"])
    if "context" in evaluation:
        reach, continuation = evaluation["context"]["reach"], evaluation["context"]["continuation"]
        numbers |= {f"context_reach/{s}_s": row["bits_per_frame"] for s, row in reach.items()}
        numbers |= {f"continuation_accuracy/{s}_s": row["accuracy"] for s, row in continuation.items()}
    if "words" in evaluation and (word_bits := evaluation["words"]["babble"]["word_bits"]):
        numbers["words/place"] = word_bits["place"]
    if "speech" in evaluation:
        statistics, accuracies = evaluation["speech"]["statistics"], evaluation["speech"]["classifier"]["babble"]
        numbers |= {f"classifier_accuracy/{s}_s": found["accuracy"] for s, found in accuracies.items() if found}
        for prefix, name in (("babble", "babble"), ("real", REAL)):
            by_clip = {s: by_set[name]["mean"] for s, by_set in statistics["measures"].items() if by_set[name]}
            by_set = {s: by_set[name] for s, by_set in statistics["sets"].items() if by_set[name] is not None}
            numbers |= {f"{prefix}/{statistic}": value for statistic, value in (by_clip | by_set).items()}
    return {f"evaluation/{evaluation['split']}/{name}": value for name, value in numbers.items()}
