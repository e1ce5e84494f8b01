"""From shards, near or far, to the batches of this rank, in an order that can be repeated exactly."""
