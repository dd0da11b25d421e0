"""What a plan needs, how fast it should be, what it costs: by formulas, without torch."""
