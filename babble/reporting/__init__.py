"""Pictures, the report page and the W&B workspace."""

# Epochs of a run whose samples are shown: few, or a long run makes a page of many megabytes.
SHOWN_EPOCHS = 3
