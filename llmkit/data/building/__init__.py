"""From documents to token shards, before training."""
