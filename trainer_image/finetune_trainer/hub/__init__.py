"""The Hub's client, with errors in plain words, and its cache."""
