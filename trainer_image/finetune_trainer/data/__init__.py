"""Data: from what the spec names to rows with text, label, and to tokens."""
