"""Maximum length of an input. The plan also uses this, and has only config.json and no model."""

_NO_LIMIT = 1_048_576


def max_input_length(model_type: str, positions: int | None, pad_token_id: int | None) -> int:
    """Return the number of tokens that the model has positions for. A longer text would cause an index error in the model."""
    # RoBERTa's positions begin after the index of the padding token.
    offset = (pad_token_id or 0) + 1 if "roberta" in model_type else 0
    return (positions or _NO_LIMIT) - offset
