"""Things that observe and apply. They import vla_runtime, never policies."""
