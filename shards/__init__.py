"""WebDataset shards: deterministic writer, index, verification."""
