"""Triton forms of the operators. Each is imported, and triton with it, when it has been chosen."""
