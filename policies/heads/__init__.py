"""From hidden states to actions: one file a way of decoding."""
