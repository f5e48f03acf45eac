"""The command line of the export side: parse, call the library, print.

====================  ============================================================================
``commands``          the program: the options of an export and of ``verify``
``usage``             what of them is refused as wrong usage
``run_export``        an export as it was asked for: made, shown, copied, pushed, served
``pull``              a delta from the Hub; ``import_adapter`` one that was trained elsewhere
``options``           what several commands take
``each_task``         a command for each task it names
``progress``          what is being done; ``proof`` what was measured
====================  ============================================================================
"""

from .commands import app, main

__all__ = ["app", "main"]
