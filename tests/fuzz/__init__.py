"""Mutates files that a parser takes, and looks at what it does with them: `python -m tests.fuzz PARSER --minutes N`."""
