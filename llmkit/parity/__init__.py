"""Proof that every layout trains the same model: small cases, each beside one process alone."""
