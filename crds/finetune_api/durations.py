"""Formats durations for people, the same way in kubectl's columns and on the terminal."""


def format_duration(seconds: float) -> str:
    """Format a duration with its two largest units, as kubectl shows ages: 45s, 2m10s, 1h05m, 3d4h."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m{rest:02d}s"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if days else f"{hours}h{minutes:02d}m"
