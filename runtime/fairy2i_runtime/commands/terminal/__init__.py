"""A person at a terminal: lines that are typed, what was typed before, Ctrl-C in the middle of an answer."""
