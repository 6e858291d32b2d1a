"""`babble preprocess`: recordings -> shards, in parallel with Ray. job.py is the map of this package."""
