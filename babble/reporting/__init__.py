"""Pictures, the report page and the W&B workspace."""
