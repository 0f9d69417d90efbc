"""Video ids: strings of 1 to 20 digits. Many are beyond int64 and some beyond uint64, so they are never numbers."""

MAX_DIGITS = 20


def is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_DIGITS and text.isascii() and text.isdigit()
