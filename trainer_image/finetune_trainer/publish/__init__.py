"""Pushing the finished model to the Hub: the files that may be uploaded, the model card, the push."""
