"""Shards of frames, and what feeds them to a training."""
