"""Policies over a socket: a server that openpi's clients speak to as well, and a client that speaks to theirs."""
