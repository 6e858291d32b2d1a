"""Free-running generation: prompts, sampling loop, output files."""
