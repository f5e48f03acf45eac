"""The command line of the export side: parse, call the library, print.

``commands`` holds the program, ``bring`` its ``pull`` and ``import``; ``common`` is what they
share, and ``usage`` what is refused as wrong usage.
"""

from .commands import app, main

__all__ = ["app", "main"]
