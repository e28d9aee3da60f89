"""How long an input may be: also for the plan, which has config.json and no model."""

_NO_LIMIT = 1_048_576


def longest_input(model_type: str, positions: int | None, pad_token_id: int | None) -> int:
    """Tokens that the model has positions for, where it says so: a longer text would be an index error deep inside."""
    # RoBERTa's positions begin behind the padding token's index.
    offset = (pad_token_id or 0) + 1 if "roberta" in model_type else 0
    return (positions or _NO_LIMIT) - offset
