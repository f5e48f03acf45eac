"""Tasks in one file: ``pack`` writes it, ``unpack`` reads it, ``pack_file`` is its format."""
