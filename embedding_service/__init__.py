"""The embedding worker: texts to vectors."""
