"""Tokens on disk, read by row: our own format, and formats of others."""
