"""Local and remote files, and the documents in them."""
