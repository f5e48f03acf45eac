"""How large an image may be before it is decoded: known without a library that decodes."""

MAX_PIXELS = 50_000_000
"""Width times height; a few kilobytes can promise more than memory holds."""
