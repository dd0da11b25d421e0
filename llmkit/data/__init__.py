"""From text to batches: tokenizers, token shards, the order of the rows, the loader."""
