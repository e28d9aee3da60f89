"""Loading models and tokenizers, adapters, embeddings and weights."""
