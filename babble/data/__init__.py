"""Shards of frames, and the batches of training and validation read from them."""
