"""Which frames go to which split."""

from itertools import pairwise

import pytest

from preprocessing.split import Part, SplitConfig, match_names, split_recordings

CHAPTERS = {f"book/chapter-{i:02d}": 1000 + 37 * i for i in range(40)}


def names(parts: list[Part], split: str) -> list[str]:
    return [part.recording for part in parts if part.split == split]


def frames(parts: list[Part], split: str) -> int:
    return sum(part.frames for part in parts if part.split == split)


def split_by_config(lengths: dict[str, int], config: SplitConfig) -> list[Part]:
    return split_recordings(lengths, config, match_names(list(lengths), config))


def test_every_frame_is_in_one_split() -> None:
    for lengths in (CHAPTERS, {"a": 999, "b": 10}, {"whole book": 1_440_000}):
        parts = split_by_config(lengths, SplitConfig())
        for name, length in lengths.items():
            runs = sorted((part.first_frame, part.frames) for part in parts if part.recording == name)
            assert runs[0][0] == 0
            assert sum(run for _, run in runs) == length
            for (first, run), (following, _) in pairwise(runs):
                assert first + run == following


def test_many_recordings_are_split_whole_and_near_the_fractions() -> None:
    parts = split_by_config(CHAPTERS, SplitConfig())
    assert len(parts) == len(CHAPTERS)
    total = sum(CHAPTERS.values())
    for split in ("validation", "test"):
        assert frames(parts, split) == pytest.approx(0.05 * total, rel=0.5)
    assert [part.recording for part in parts if part.split == "train"] == sorted(names(parts, "train"))


def test_parts_come_in_order_of_split_then_of_the_sources() -> None:
    parts = split_by_config(CHAPTERS, SplitConfig())
    order = ["train", "validation", "test"]
    assert [order.index(part.split) for part in parts] == sorted(order.index(part.split) for part in parts)


def test_the_same_random_seed_splits_the_same_and_another_differently() -> None:
    first = split_by_config(CHAPTERS, SplitConfig(seed=1))
    assert first == split_by_config(CHAPTERS, SplitConfig(seed=1))
    assert names(first, "test") != names(split_by_config(CHAPTERS, SplitConfig(seed=2)), "test")


def test_order_of_the_sources_does_not_change_the_split() -> None:
    backwards = dict(reversed(CHAPTERS.items()))
    forwards = split_by_config(CHAPTERS, SplitConfig())
    assert sorted(names(forwards, "test")) == sorted(names(split_by_config(backwards, SplitConfig()), "test"))


def test_one_more_chapter_changes_little() -> None:
    more = {**CHAPTERS, "book/chapter-40": 1500}
    before, after = (split_by_config(lengths, SplitConfig()) for lengths in (CHAPTERS, more))
    was = {part.recording: part.split for part in before}
    moved = [part.recording for part in after if was.get(part.recording, part.split) != part.split]
    assert len(moved) <= 4


def test_eight_equal_recordings_leave_one_each_to_validation_and_test() -> None:
    parts = split_by_config({f"r{i}": 4800 + i for i in range(8)}, SplitConfig())
    assert [len(names(parts, split)) for split in ("train", "validation", "test")] == [6, 1, 1]


@pytest.mark.parametrize(
    "lengths", [{f"r{i}": 5000 for i in range(7)}, {"long": 90000, **{f"r{i}": 5000 for i in range(9)}}]
)
def test_too_few_or_one_that_outweighs_the_rest_are_split_by_time(lengths: dict[str, int]) -> None:
    parts = split_by_config(lengths, SplitConfig(validation_fraction=0.1, test_fraction=0.2))
    for name, length in lengths.items():
        assert [(p.split, p.first_frame, p.frames) for p in parts if p.recording == name] == [
            ("train", 0, length * 7 // 10),
            ("validation", length * 7 // 10, length // 10),
            ("test", length * 8 // 10, length * 2 // 10),
        ]


def test_patterns_choose_recordings() -> None:
    config = SplitConfig(validation=("chapter-0[34]",), test=("book/chapter-3*", "chapter-07"))
    parts = split_by_config(CHAPTERS, config)
    assert names(parts, "validation") == ["book/chapter-03", "book/chapter-04"]
    assert names(parts, "test") == ["book/chapter-07", *(f"book/chapter-3{i}" for i in range(10))]
    assert frames(parts, "train") + frames(parts, "validation") + frames(parts, "test") == sum(CHAPTERS.values())


def test_a_name_with_brackets_can_be_typed_as_it_is() -> None:
    config = SplitConfig(test=("a [1]",))
    assert match_names(["x/a [1]", "x/a 1"], config) == {"x/a [1]": "test", "x/a 1": "train"}


def test_patterns_that_can_not_be_meant_are_refused() -> None:
    listed = list(CHAPTERS)
    with pytest.raises(ValueError, match=r"split\.test: no recording is called 'part-\*'\. There are: book/chapter-00"):
        match_names(listed, SplitConfig(test=("part-*",)))
    with pytest.raises(ValueError, match="both ask for recording 'book/chapter-03'"):
        match_names(listed, SplitConfig(validation=("*3",), test=("chapter-03",)))


def test_all_recordings_can_be_for_evaluation() -> None:
    assert match_names(["a", "b"], SplitConfig(test=("*",))) == {"a": "test", "b": "test"}


def test_a_recording_that_turned_out_bad_does_not_change_where_the_others_go() -> None:
    config = SplitConfig(test=("chapter-0*",))
    matched = match_names(list(CHAPTERS), config)
    good = {name: length for name, length in CHAPTERS.items() if name != "book/chapter-05"}
    parts = split_recordings(good, config, matched)
    assert len(names(parts, "test")) == 9
    assert len(parts) == 39


def test_a_fraction_of_zero_leaves_the_split_empty() -> None:
    for lengths in (CHAPTERS, {"a": 9000}):
        parts = split_by_config(lengths, SplitConfig(test_fraction=0.0))
        assert names(parts, "test") == []
        assert names(parts, "validation")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test": ("a",), "test_fraction": 0.1}, "split.test_fraction has no effect"),
        ({"test_fraction": 1.0}, "split.test_fraction=1.0 is no share"),
        ({"validation_fraction": -0.1}, "split.validation_fraction=-0.1 is no share"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)  # type: ignore[arg-type]
