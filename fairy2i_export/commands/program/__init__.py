"""The two programs as typer applications; ``commands.export`` and ``commands.tools`` start them."""
