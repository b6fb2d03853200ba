"""The commands: each parses its arguments, calls one function, prints, and returns an exit code."""
