"""Codec 2: what a frame is, PCM to frames and back, edits of frames, detectors of failures. No torch."""
