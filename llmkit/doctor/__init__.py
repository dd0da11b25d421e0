"""What a machine, or each node of a job, has for training, and what is wrong with it."""
