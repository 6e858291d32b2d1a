"""Files, folders and zips -> recordings with names, failures, and ignored files."""

import contextlib
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from preprocessing.kinds import BadRecording
from preprocessing.sources import COPY_BYTES, Found, find_sources, hash_source, open_source

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
    path = make_zip(folder / "z.zip", "2.mp3", "__MACOSX/._2.mp3", ".git/3.mp3")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cover.jpg", b"\xff\xd8\xff")
        archive.writestr("art/", b"")
    (folder / "empty.log").touch()
    # What an MP3, or an MP4, may start with too.
    (folder / "utf-16.txt").write_bytes("\ufeffRead in May.".encode("utf-16-le"))
    (folder / "tags.txt").write_bytes(b"ID3 tags of this book")
    (folder / "cover.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    found = find_sources([folder])
    assert [source.name for source in found.sources] == ["book/1", "book/z/2"]
    assert found.failures == []
    in_hidden, by_macos = "in a hidden folder", "made by macOS, not a recording"
    assert dict(found.ignored) == {
        **{f"{folder}/{name}": "not audio" for name in ("README", "cover.jpg", "notes.txt", ".hidden.mp3")},
        **{f"{folder}/{name}": "not audio" for name in ("utf-16.txt", "tags.txt", "cover.heic", "z.zip:cover.jpg")},
        **{f"{folder}/{name}": in_hidden for name in (".trash/", "z.zip:.git/3.mp3")},
        **{f"{folder}/{name}": by_macos for name in ("._1.mp3", "z.zip:__MACOSX/._2.mp3")},
        f"{folder}/empty.log": "empty",
    }


def test_unsupported_audio_is_a_failure(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "old.wma")
    make_zip(folder / "z.zip", "deep.zip", "old.aiff")
    causes = dict(find_sources([folder]).failures)
    assert ".wma is not supported" in causes["book/old"]
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
    other = make_zip(tmp_path / "b.zip", "x/one.mp3")
    source, second = find_sources([path, other]).sources
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # Workers of two nodes, with the same process id, share the folder.
    with open_source(source, scratch) as unpacked, open_source(second, scratch):
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


def list_names(found: Found) -> list[str]:
    assert found.failures == []
    return [source.name for source in found.sources]


def zip_folder(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_the_content_decides_in_a_folder_in_a_zip_and_if_named(tmp_path: Path) -> None:
    kinds = {
        "1": MP3,
        "2.mpga": MP3,
        "3.mp3 ": MP3,
        "4.MP3": MP3,
        "5.wav": MP3,
        "6.bak": MP3,
        ".7": MP3,
        "8.txt": MP3,
        "Part 1.5": b"fLaC" + bytes(40),
        "Part 1.6": b"OggS" + bytes(40),
        "tagged": b"ID3\x04" + bytes(40),
        "9.c2": b"\xc0\xde\xc2\x01" + bytes(40),
        "10": b"\xc0\xde\xc2\x01" + bytes(40),
        "11.c2cb": b"\xff\xf3\x00",
        "12.mp3": b"padding",
        "13.dat": b"RIFF\x00\x00\x00\x00WAVE",
        "14": b"\x00\x00\x00\x18ftypM4A ",
    }
    for name, data in kinds.items():
        fill(tmp_path / "book", name, data=data)
    stems = {
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        ".7",
        "8",
        "Part 1.5",
        "Part 1.6",
        "tagged",
        "9",
        "10",
        "11",
        "12",
        "13",
        "14",
    }
    folder = tmp_path / "book"
    for paths in ([folder], [zip_folder(folder)]):
        found = find_sources(paths)
        assert set(list_names(found)) == {f"book/{stem}" for stem in stems}
        assert found.ignored == []
        assert {source.name for source in found.sources if source.is_encoded} == {"book/9", "book/10", "book/11"}
    assert set(list_names(find_sources(sorted(folder.iterdir())))) == stems
    assert [source.suffix for source in find_sources([folder / "3.mp3 "]).sources] == [".mp3"]


def test_a_title_may_start_with_dots(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "...and then there was light.ogg", "02.ogg", "...for all/1.ogg", "...and then")
    names = ["book/...and then", "book/...and then there was light", "book/...for all/1", "book/02"]
    for path in (folder, zip_folder(folder)):
        assert sorted(list_names(find_sources([path]))) == names


def test_a_zip_is_known_by_its_content_and_may_name_its_own_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "1.mp3")
    make_zip(folder / "without a suffix", "./2.mp3", "../3.mp3")
    make_zip(folder / "more.ZIP ", "4.mp3")
    make_zip(folder / "text.docx", "5.xml")
    found = find_sources([folder])
    inside = [f"book/without a suffix/{name}" for name in ("../3", "./2")]
    assert list_names(found) == ["book/1", "book/more/4", *inside]
    assert found.ignored == [(f"{folder}/text.docx", "not audio")]
    assert list_names(find_sources([folder / "without a suffix"])) == [name.removeprefix("book/") for name in inside]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "1.mp3", "real/2.mp3", "real/deep/3.mp3")
    elsewhere = fill(tmp_path / "elsewhere", "4.mp3", "more/5.mp3")
    # To a folder in it, to one elsewhere, twice, by a link in a link, and to folders that they are in.
    (folder / "a copy").symlink_to("real")
    (folder / "disc 2").symlink_to(elsewhere)
    (folder / "disc 3").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder / "real/deep")
    (folder / "real/loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    found = find_sources([folder, elsewhere])
    assert list_names(found) == [f"book/{name}" for name in ("1", "real/2", "real/deep/3", "disc 2/4", "disc 2/more/5")]
    assert dict(found.ignored) == {
        f"{folder}/real/loop/": f"a link to a folder that it is in, {folder}",
        f"{folder}/up/": f"a link to a folder that it is in, {tmp_path}",
        f"{folder}/a copy/": f"the same folder as {folder}/real/",
        f"{folder}/disc 3/": f"the same folder as {folder}/disc 2/",
        f"{folder}/disc 2/back/": f"the same folder as {folder}/real/deep/",
        f"{elsewhere}/": f"the same folder as {folder}/disc 2/",
    }


def test_a_linked_folder_that_is_named_is_read(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "1.mp3")
    (folder / "self").symlink_to(folder)
    found = find_sources([folder / "self", folder])
    assert list_names(found) == ["book/1"]
    assert [path for path, _ in found.ignored] == [f"{folder}/self/self/", f"{folder}/"]


def test_names_that_differ_in_bytes_that_are_not_utf_8_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xfccher")
    for name in (b"caf\xe9.mp3", b"caf\xe8.mp3", b"th\xe9.mp3", b"th\xe9.txt", b"na\xefve/1.mp3"):
        fill(folder, os.fsdecode(name), data=b"text" if name.endswith(b".txt") else MP3)
    found = find_sources([folder])
    names = [f"b\ufffdcher/{name}" for name in ("th\ufffd", "na\ufffdve/1")]
    assert sorted(list_names(found)) == sorted([*names, r"b\xfccher/caf\xe8", r"b\xfccher/caf\xe9"])
    for text in [source.file + source.file_name for source in found.sources] + [path for path, _ in found.ignored]:
        text.encode()
    assert all(source.path.exists() for source in found.sources)


def break_names(path: Path) -> Path:
    """Replace each letter with an accent in the headers of a zip by bytes that are not UTF-8, as some programs do."""
    path.write_bytes(path.read_bytes().replace("\xe9".encode(), b"\xff\xfe").replace("\xe8".encode(), b"\xff\xfd"))
    return path


def test_a_zip_with_names_that_are_not_utf_8_is_read(tmp_path: Path) -> None:
    data = MP3 * 1000
    path = make_zip(tmp_path / "a.zip", "caf\xe9/1.mp3", "caf\xe8/1.mp3", "th\xe9.mp3", "d\u0159\xed.mp3", data=data)
    found = find_sources([break_names(path)])
    names = ["a/d\u0159\xed", r"a/caf\xff\xfd/1", r"a/caf\xff\xfe/1", "a/th\ufffd\ufffd"]
    assert sorted(list_names(found)) == sorted(names)
    for source in found.sources:
        with open_source(source, tmp_path) as unpacked:
            assert unpacked.read_bytes() == data
        source.file.encode()


def test_a_cut_or_encrypted_zip_is_a_failure_and_the_others_are_read(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "1.mp3")
    data = make_zip(tmp_path / "whole.zip", "2.mp3", "3.mp3", "notes.txt").read_bytes()
    for number in range(0, len(data), 7):
        (folder / f"cut-{number}.zip").write_bytes(data[:number])
    encrypted = bytearray(data)
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.find(header) + flags] |= 1
    (folder / "locked.zip").write_bytes(encrypted)
    found = find_sources([folder])
    assert [source.name for source in found.sources if "cut" not in source.name] == [
        *("book/1", "book/locked/3", "book/locked/notes")
    ]
    causes = dict(found.failures)
    assert causes["book/locked/2"] == "encrypted in the zip; unpack it with its password first"
    expected = f"can't open the zip {folder}/cut-7.zip: it is cut or damaged, or not a zip: copy or download it again"
    assert causes["book/cut-7"] == expected
    assert len([name for name in causes if "cut" in name]) == len(range(0, len(data), 7))


def test_any_damage_to_a_zip_is_named(tmp_path: Path) -> None:
    """Each byte of a zip in turn is changed: nothing else is raised, and every member is read, failed or ignored."""
    data = make_zip(tmp_path / "whole.zip", "1.mp3", "2.mp3").read_bytes()
    path = tmp_path / "a.zip"
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        found = find_sources([path])
        assert found.sources or found.failures
        for source in found.sources:
            with contextlib.suppress(BadRecording):
                assert hash_source(source) == hashlib.sha256(MP3).hexdigest()


def test_the_hash_is_of_the_content_in_a_zip_too(tmp_path: Path) -> None:
    folder = fill(tmp_path / "book", "1.mp3")
    for path in (folder, zip_folder(folder)):
        (source,) = find_sources([path]).sources
        assert hash_source(source) == hashlib.sha256(MP3).hexdigest()
