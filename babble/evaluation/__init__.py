"""Metrics on held-out speech and on babble, with their baselines. No Lightning."""
