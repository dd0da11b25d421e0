"""What the training loop in `llmkit.train` is made of."""
