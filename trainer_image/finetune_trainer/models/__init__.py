"""Loads and saves models and tokenizers, with adapters, embeddings and weights."""
