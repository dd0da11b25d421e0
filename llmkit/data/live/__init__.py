"""Documents tokenized while the model trains on them."""
