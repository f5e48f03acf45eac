"""The front door: the program ``glora``, one file per command; nothing imports it.

``table`` names every command, where it lies and what it does in a line; ``main`` is the program.
A command is a function with Typer's annotations. Its file imports what is heavy inside it, so that
``--help`` and wrong usage stay quick. To add one: a file here, named after its verb, and a line in
the table. The commands that train and export lie in their sides, which are programs of their own.
"""
