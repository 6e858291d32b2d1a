"""Many trainings with Ray Tune."""
