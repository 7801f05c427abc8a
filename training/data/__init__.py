"""What training reads: samples of shards, cut to the frames and size that a model wants, in batches."""
