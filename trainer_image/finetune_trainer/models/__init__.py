"""Loads and saves models and tokenizers. Adds and merges adapters, extends embeddings, and reloads saved weights."""
