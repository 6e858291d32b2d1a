"""babble learns to speak by samples: from shards of Codec 2 frames to free-running speech-like babble."""

import logging

# Without a writable home folder matplotlib uses a temporary one, and warns about it twice. Lightning imports it too.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
