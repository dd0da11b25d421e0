"""`llmkit doctor --calibrate`: measures what a CPU does, so that the time of its steps can be estimated."""
