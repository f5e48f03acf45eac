"""One process, one shared backbone, many tasks: not built yet; see the README."""
