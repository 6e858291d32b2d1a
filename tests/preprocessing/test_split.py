"""Which frames belong to which split."""

from itertools import pairwise

import pytest

from preprocessing.split import SplitConfig, SplitSegment, match_names, split_recordings

CHAPTERS = {f"book/chapter-{i:02d}": 1000 + 37 * i for i in range(40)}


def names(segments: list[SplitSegment], split: str) -> list[str]:
    return [segment.recording for segment in segments if segment.split == split]


def frames(segments: list[SplitSegment], split: str) -> int:
    return sum(segment.frames for segment in segments if segment.split == split)


def split_by_config(lengths: dict[str, int], config: SplitConfig) -> list[SplitSegment]:
    return split_recordings(lengths, config, match_names(list(lengths), config))


def test_every_frame_is_in_one_split() -> None:
    for lengths in (CHAPTERS, {"a": 999, "b": 10}, {"whole book": 1_440_000}):
        segments = split_by_config(lengths, SplitConfig())
        for name, length in lengths.items():
            runs = sorted((segment.first_frame, segment.frames) for segment in segments if segment.recording == name)
            assert runs[0][0] == 0
            assert sum(run for _, run in runs) == length
            for (first, run), (following, _) in pairwise(runs):
                assert first + run == following


def test_many_recordings_are_split_whole_and_near_the_fractions() -> None:
    segments = split_by_config(CHAPTERS, SplitConfig())
    assert len(segments) == len(CHAPTERS)
    total = sum(CHAPTERS.values())
    for split in ("validation", "test"):
        assert frames(segments, split) == pytest.approx(0.05 * total, rel=0.5)
    assert [segment.recording for segment in segments if segment.split == "train"] == sorted(names(segments, "train"))


def test_segments_are_in_order_of_split_then_of_the_sources() -> None:
    segments = split_by_config(CHAPTERS, SplitConfig())
    order = ["train", "validation", "test"]
    assert [order.index(segment.split) for segment in segments] == sorted(
        order.index(segment.split) for segment in segments
    )


def test_a_seed_determines_the_split() -> None:
    first = split_by_config(CHAPTERS, SplitConfig(seed=1))
    assert first == split_by_config(CHAPTERS, SplitConfig(seed=1))
    assert names(first, "test") != names(split_by_config(CHAPTERS, SplitConfig(seed=2)), "test")


def test_order_of_the_sources_does_not_change_the_split() -> None:
    backwards = dict(reversed(CHAPTERS.items()))
    forwards = split_by_config(CHAPTERS, SplitConfig())
    assert sorted(names(forwards, "test")) == sorted(names(split_by_config(backwards, SplitConfig()), "test"))


def test_one_more_chapter_moves_few_others() -> None:
    more = {**CHAPTERS, "book/chapter-40": 1500}
    before, after = (split_by_config(lengths, SplitConfig()) for lengths in (CHAPTERS, more))
    was = {segment.recording: segment.split for segment in before}
    moved = [segment.recording for segment in after if was.get(segment.recording, segment.split) != segment.split]
    assert len(moved) <= 4


def test_eight_equal_recordings_give_one_each_to_validation_and_test() -> None:
    segments = split_by_config({f"r{i}": 4800 + i for i in range(8)}, SplitConfig())
    assert [len(names(segments, split)) for split in ("train", "validation", "test")] == [6, 1, 1]


@pytest.mark.parametrize(
    "lengths", [{f"r{i}": 5000 for i in range(7)}, {"long": 90000, **{f"r{i}": 5000 for i in range(9)}}]
)
def test_few_recordings_or_one_very_long_one_are_split_by_time(lengths: dict[str, int]) -> None:
    segments = split_by_config(lengths, SplitConfig(validation_fraction=0.1, test_fraction=0.2))
    for name, length in lengths.items():
        assert [(p.split, p.first_frame, p.frames) for p in segments if p.recording == name] == [
            ("train", 0, length * 7 // 10),
            ("validation", length * 7 // 10, length // 10),
            ("test", length * 8 // 10, length * 2 // 10),
        ]


def test_patterns_choose_recordings() -> None:
    config = SplitConfig(validation=("chapter-0[34]",), test=("book/chapter-3*", "chapter-07"))
    segments = split_by_config(CHAPTERS, config)
    assert names(segments, "validation") == ["book/chapter-03", "book/chapter-04"]
    assert names(segments, "test") == ["book/chapter-07", *(f"book/chapter-3{i}" for i in range(10))]
    assert frames(segments, "train") + frames(segments, "validation") + frames(segments, "test") == sum(
        CHAPTERS.values()
    )


def test_a_name_with_brackets_matches_itself() -> None:
    config = SplitConfig(test=("a [1]",))
    assert match_names(["x/a [1]", "x/a 1"], config) == {"x/a [1]": "test", "x/a 1": "train"}


def test_patterns_without_meaning_are_rejected() -> None:
    listed = list(CHAPTERS)
    with pytest.raises(ValueError, match=r"test: no recording matches 'part-\*'\. The recordings are book/chapter-00"):
        match_names(listed, SplitConfig(test=("part-*",)))
    with pytest.raises(ValueError, match="both match recording 'book/chapter-03'"):
        match_names(listed, SplitConfig(validation=("*3",), test=("chapter-03",)))


def test_all_recordings_can_be_for_evaluation() -> None:
    config = SplitConfig(test=("*",))
    assert match_names(["a", "b"], config) == {"a": "test", "b": "test"}
    assert split_by_config({"a": 10, "b": 20}, config) == [
        SplitSegment("a", "test", 0, 10),
        SplitSegment("b", "test", 0, 20),
    ]


def test_a_failed_recording_does_not_move_the_others() -> None:
    config = SplitConfig(test=("chapter-0*",))
    matched = match_names(list(CHAPTERS), config)
    good = {name: length for name, length in CHAPTERS.items() if name != "book/chapter-05"}
    segments = split_recordings(good, config, matched)
    assert len(names(segments, "test")) == 9
    assert len(segments) == 39


def test_a_fraction_of_zero_leaves_the_split_empty() -> None:
    for lengths in (CHAPTERS, {"a": 9000}):
        segments = split_by_config(lengths, SplitConfig(test_fraction=0.0))
        assert names(segments, "test") == []
        assert names(segments, "validation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": ("a",), "test_fraction": 0.1}, "split.test_fraction has no effect"),
        ({"test_fraction": 1.0}, "split.test_fraction=1.0: must be at least 0"),
        ({"validation_fraction": -0.1}, "split.validation_fraction=-0.1: must be at least 0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must be below 1.*--split.test"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)  # type: ignore[arg-type]
