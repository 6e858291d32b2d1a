"""The network: frames in, the distribution of the next frame out. No Lightning, W&B or Ray."""
