"""What can be asked for: every option of the front ends, declared once with its words for people.

The command line, the Python functions, ``--dry-run``, the rewriter and the recipe of training are made of these declarations.
"""
