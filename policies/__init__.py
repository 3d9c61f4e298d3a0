"""Things that predict. They import vla_runtime, never envs."""
