"""Action chunks to discrete tokens and back. Both sides of a tokenizer live in [-1, 1]; units stay outside."""
