"""Reads the data sets of the spec, normalises and tokenises their rows, and decides which rows form a batch."""
