"""babble learns a voice from recordings, and generates speech-like audio in it, without text.

    import babble

    speech = babble.load().generate(seconds=10)
    speech.save("babble.wav")

`load`, `encode`, `decode`, `Voice` and `Speech` are those of babble/api.py, imported when first used: they need torch.
"""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from babble.api import Speech, Voice, decode, encode, load

    __version__: str

__all__ = ["Speech", "Voice", "__version__", "decode", "encode", "load"]

# Without a writable home folder matplotlib uses a temporary one, and warns about it twice. Lightning imports it too.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("babble-speech")
    if name in __all__:
        from babble import api

        return getattr(api, name)
    raise AttributeError(f"module 'babble' has no attribute {name!r}")
