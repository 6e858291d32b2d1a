"""Names of files: their suffixes, how they are shown, and which of them belong to the operating system.

Names may hold bytes that are not UTF-8, which Python keeps as surrogates (`os.fsdecode`). A name that is written or
printed is made printable first.
"""

import re


def printable(name: str) -> str:
    """Return a name with each byte that is not UTF-8 replaced by U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def escape_bytes(name: str) -> str:
    r"""Return a name with each byte that is not UTF-8 as \xNN, which is unique where `printable` is not."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def split_suffix(path: str) -> tuple[str, str]:
    """Return a path without its suffix, and the suffix in lower case, without spaces at its end.

        split_suffix("disc 1/01.MP3 ")  # ("disc 1/01", ".mp3")

    What follows a dot is a suffix if it looks like one: "Chapter 1. The Whale", "Part 1.5" and "...and then" have none.
    """
    stem, _, suffix = path.rpartition(".")
    suffix = suffix.rstrip()
    if not stem.rpartition("/")[2].strip(".") or not re.fullmatch("[a-z][a-z0-9]{0,4}", suffix, re.IGNORECASE):
        return path, ""
    return stem, f".{suffix.lower()}"


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden: one dot at its start. A title may start with an ellipsis."""
    return name.startswith(".") and name != "." and not name.startswith("..")


def explain_ignored(path: str) -> str | None:
    """Return why a file is ignored whatever it contains, by its path inside a source; None if its content decides.

    Hidden folders (.git, .Trash) and the files that macOS adds to folders and zips ("._01.mp3" holds no audio) are not
    what the reader recorded. A hidden file outside of them may be: a title may start with a dot.
    """
    *folders, name = path.split("/")
    if "__MACOSX" in folders or name.startswith("._") or name == ".DS_Store":
        return "made by macOS, not a recording"
    return "in a hidden folder" if any(map(is_hidden, folders)) else None
