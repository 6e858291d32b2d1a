"""What a machine or a cluster runs over many recordings or many settings: thin programs."""
