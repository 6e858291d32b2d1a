"""The network: frames in, the next frame out. Nothing of Lightning, W&B, Ray or files, but checkpoints."""
