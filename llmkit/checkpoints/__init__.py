"""`llmkit checkpoint`: what can be done with the checkpoints of a run from outside."""
