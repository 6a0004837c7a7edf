"""The chunkers of before: one, which asks an embedding model where to cut."""
