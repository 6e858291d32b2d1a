"""Training with Lightning: module, callbacks, checkpoints, metrics, samples, W&B."""
