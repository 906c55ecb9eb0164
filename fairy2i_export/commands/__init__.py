"""The command lines: the only place with typer and tables."""
