"""Files here and elsewhere, and the documents in them."""
