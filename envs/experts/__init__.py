"""Scripted demonstrators: they read the simulator through the environment that made them, and act through `apply`."""
