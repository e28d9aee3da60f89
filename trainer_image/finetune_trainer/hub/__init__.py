"""Access to the Hub: retries, errors as clear sentences, and the shared cache."""
