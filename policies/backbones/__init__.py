"""Networks that turn observations into context once, and action slots into hidden states many times."""
