"""Runs seen from outside, by their files alone: `llmkit top` and `llmkit runs`."""
