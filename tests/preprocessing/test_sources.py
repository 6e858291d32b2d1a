"""Files, folders and zips -> recordings with names, failures, and ignored files."""

import os
import zipfile
from pathlib import Path

import pytest

from preprocessing.kinds import BadRecording
from preprocessing.sources import COPY_BYTES, find_sources, open_source

MP3 = b"\xff\xfb\x90\x00" * 10


def fill(folder: Path, *names: str, data: bytes = MP3) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def make_zip(path: Path, *names: str, data: bytes = MP3, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


def test_files_folders_and_zips_are_searched_in_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "b.mp3", "a.flac", "disc 2/c.OGG", "z.c2cb")
    make_zip(folder / "more.zip", "x/2.m4b", "x/1.m4b")
    alone = fill(tmp_path, "alone.wav") / "alone.wav"
    found = find_sources([alone, folder])
    names = [source.name for source in found.sources]
    assert names == ["alone", "book/a", "book/b", "book/more/x/1", "book/more/x/2", "book/z", "book/disc 2/c"]
    assert found.sources[3].member == "x/1.m4b"
    assert found.sources[3].suffix == ".m4b"
    assert found.sources[-1].suffix == ".ogg"
    assert {source.num_bytes for source in found.sources} == {len(MP3)}
    assert found.failures == []


def test_two_books_may_both_have_a_first_chapter(tmp_path: Path) -> None:
    found = find_sources([fill(tmp_path / "one", "01.mp3"), fill(tmp_path / "two", "01.mp3")])
    assert [source.name for source in found.sources] == ["one/01", "two/01"]
    assert found.failures == []


def test_two_files_with_the_same_name_are_both_reported(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "01.mp3", "01.flac", "02.mp3")
    found = find_sources([folder])
    assert [source.path.name for source in found.sources] == ["01.flac", "02.mp3"]
    ((name, cause),) = found.failures
    assert name == "book/01"
    assert cause.startswith(f"two files with the same name: {folder}/01.mp3 and {folder}/01.flac")


def test_files_that_are_not_audio_are_ignored_but_listed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "README", "cover.jpg", "notes.txt", ".hidden.mp3", "._1.mp3", data=b"\xff\xd8\xff")
    fill(folder, "1.mp3", ".trash/3.mp3", ".trash/4.mp3")
    make_zip(folder / "z.zip", "2.mp3", "cover.jpg", "__MACOSX/._2.mp3")
    found = find_sources([folder])
    assert [source.name for source in found.sources] == ["book/1", "book/z/2"]
    assert found.failures == []
    assert len(found.ignored) == 8
    assert f"{folder}/.trash/" in found.ignored


def test_unsupported_audio_is_a_failure(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "old.wma", "sound.mp3.bak", "nameless")
    make_zip(folder / "z.zip", "deep.zip", "old.aiff")
    causes = dict(find_sources([folder]).failures)
    assert ".wma is not supported" in causes["book/old"]
    assert "named .bak, but it contains MP3" in causes["book/sound.mp3"]
    assert "named without a suffix" in causes["book/nameless"]
    assert "a zip inside a zip" in causes["book/z/deep"]
    assert ".aiff is not supported" in causes["book/z/old"]


def test_a_file_that_is_named_must_be_audio(tmp_path: Path) -> None:
    fill(tmp_path, "notes.txt", data=b"words")
    ((name, cause),) = find_sources([tmp_path / "notes.txt"]).failures
    assert name == "notes"
    assert cause.startswith("not audio: suffix .txt must be one of .mp3 .flac")


def test_broken_links_pipes_and_broken_zips_fail(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "broken.zip", "1.mp3")
    (folder / "gone.mp3").symlink_to("nowhere.mp3")
    os.mkfifo(folder / "pipe.mp3")
    found = find_sources([folder])
    causes = dict(found.failures)
    assert [source.name for source in found.sources] == ["book/1"]
    assert causes["book/gone"] == f"unreadable: {folder}/gone.mp3: No such file or directory"
    assert causes["book/pipe"] == f"unreadable: {folder}/pipe.mp3 is not a regular file"
    assert causes["book/broken"].startswith(f"can't open the zip {folder}/broken.zip")


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    for name in ("nowhere", "nowhere.zip", "nowhere.mp3"):
        with pytest.raises(FileNotFoundError, match=f"--sources .*/{name} does not exist"):
            find_sources([tmp_path / name])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_member_of_a_zip_is_unpacked_while_it_is_open(tmp_path: Path, compression: int) -> None:
    data = os.urandom(COPY_BYTES + 1000)
    path = make_zip(tmp_path / "a.zip", "x/one.mp3", data=data, compression=compression)
    (source,) = find_sources([path]).sources
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_source(source, scratch) as unpacked:
        assert unpacked.read_bytes() == data
        assert unpacked.suffix == ".mp3"
    assert list(scratch.iterdir()) == []


def test_a_damaged_member_is_a_bad_recording(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", "one.mp3", data=os.urandom(100_000), compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[50_000] ^= 1
    path.write_bytes(data)
    (source,) = find_sources([path]).sources
    with pytest.raises(BadRecording, match="can't unpack it from the zip: Bad CRC-32"), open_source(source, tmp_path):
        pass


def test_a_name_that_is_not_utf_8_becomes_printable(tmp_path: Path) -> None:
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.mp3")).write_bytes(MP3)
    (source,) = find_sources([folder]).sources
    assert source.name == "book/caf\ufffd"
    assert source.path.exists()
