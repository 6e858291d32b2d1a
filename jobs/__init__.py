"""Jobs over many recordings or many settings, on one machine or a cluster."""
