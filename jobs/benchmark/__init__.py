"""The benchmark: how fast babble is, each metric next to its floor; see `__main__.py`."""
