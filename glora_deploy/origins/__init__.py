"""Origins: where versions are published to, and fetched from into a local store."""
