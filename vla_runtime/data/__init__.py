"""Episodes on disk, written and read."""
