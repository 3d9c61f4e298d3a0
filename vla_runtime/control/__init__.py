"""The real-time middle of the line: clock, schedule, limits, loop and trace."""
