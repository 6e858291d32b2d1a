"""The commands of babble under one name: `babble COMMAND ...` does the same as `python -m MODULE ...`.

babble generate --seconds 60 --out babble.wav
babble train --help
"""

import difflib
import runpy
import sys
from importlib.metadata import version

from babble.commands import COMMANDS, SHELLS

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
            "babble completion SHELL prints the completion of bash, zsh or tcsh.",
        ]
    )


def main() -> None:
    """Run `babble`: exit code 2 for an unknown command, else that of the command."""
    word, *rest = sys.argv[1:] or [""]
    if word in ("-h", "--help"):
        print(_help())
    elif word == "--version":
        print(f"babble {version(DISTRIBUTION)}")
    elif word == "completion" and rest in ([shell] for shell in SHELLS):
        # Its parsers need the settings of every command, and so torch and Ray.
        from babble.completion import write_completion

        print(write_completion(rest[0]))
    elif word in COMMANDS:
        sys.argv[1:] = rest
        # As `python -m` does it, so that processes which the command starts find the module of the command.
        runpy.run_module(COMMANDS[word].module, run_name="__main__", alter_sys=True)
    else:
        if word == "completion":
            print("babble completion: name bash, zsh or tcsh, e.g. source <(babble completion bash)", file=sys.stderr)
            sys.exit(2)
        close = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean babble {close[0]}?" if close else "babble --help lists all commands"
        print(f"babble: error: unknown command {word!r}; {hint}" if word else _help(), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
