"""Proof that every layout trains the same model: small cases, each compared with a single process."""
