"""Settings: their schema, how they are loaded and checked, what follows from them."""
