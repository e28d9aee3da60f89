"""Pushes models to the Hub: selects the files that may be uploaded, writes the model card, and uploads."""
