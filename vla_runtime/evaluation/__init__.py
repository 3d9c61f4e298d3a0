"""What a run leaves behind, and what can be concluded from it."""
