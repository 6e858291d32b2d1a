"""The commands of babble under one name: `babble COMMAND ...` does the same as `python -m MODULE ...`.

babble generate --seconds 60 --out babble.wav
babble train --help
"""

import difflib
import runpy
import sys
from importlib.metadata import version
from typing import NamedTuple


class Command(NamedTuple):
    """What one word after `babble` runs: a module, and the line that `babble --help` shows of it."""

    module: str
    summary: str


COMMANDS = {
    "voice": Command("babble.voice", "make a voice from your own recordings, in minutes"),
    "preprocess": Command("jobs.preprocess", "recordings to shards of Codec 2 frames, in parallel"),
    "inspect": Command("jobs.inspect_shards", "check and describe shards"),
    "train": Command("babble.train", "train a network on shards, or resume the run of that name"),
    "generate": Command("babble.generate", "generate audio from a run, or from the bundled voice"),
    "evaluate": Command("babble.evaluate", "metrics on held-out speech and of babble"),
    "report": Command("babble.report", "runs and sweeps on one page"),
    "tune": Command("babble.tune", "sweep over settings"),
    "dashboard": Command("babble.dashboard", "W&B workspace and report"),
    "export": Command("babble.export", "the weights of a run as one small file"),
}
# Of the distribution, whose name is not that of the package.
DISTRIBUTION = "babble-speech"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: babble COMMAND [--help] [...]",
            "",
            "Learns a voice from recordings, and generates speech-like audio in it, without text.",
            "",
            *lines,
            "",
            "babble COMMAND --help explains a command, with examples. babble --version shows the version.",
        ]
    )


def main() -> None:
    """Run `babble`: exit code 2 for an unknown command, else that of the command."""
    word, *rest = sys.argv[1:] or [""]
    if word in ("-h", "--help"):
        print(_help())
    elif word == "--version":
        print(f"babble {version(DISTRIBUTION)}")
    elif word in COMMANDS:
        sys.argv[1:] = rest
        # As `python -m` does it, so that processes which the command starts find the module of the command.
        runpy.run_module(COMMANDS[word].module, run_name="__main__", alter_sys=True)
    else:
        close = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean babble {close[0]}?" if close else "babble --help lists all commands"
        print(f"babble: error: unknown command {word!r}; {hint}" if word else _help(), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
