"""What happens to one recording on its way to frames: no Ray, no torch."""
