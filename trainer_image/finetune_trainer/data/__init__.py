"""Data: from the data sets that the spec names, to normalised rows, to tokens and batches."""
