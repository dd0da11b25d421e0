"""Jobs of a SLURM cluster: `llmkit submit` and `llmkit jobs`."""
