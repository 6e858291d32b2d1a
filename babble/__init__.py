"""babble learns to speak by samples: from shards of Codec 2 frames to free-running speech-like babble."""
