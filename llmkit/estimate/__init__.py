"""What a plan needs and how fast it should be, by formulas: memory, time, cost; nothing of it imports torch."""
