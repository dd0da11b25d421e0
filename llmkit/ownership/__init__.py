"""Which start of a run owns the run folder."""
