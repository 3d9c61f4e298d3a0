"""Tensors, no robots: how chunks are decoded, plainly first."""
