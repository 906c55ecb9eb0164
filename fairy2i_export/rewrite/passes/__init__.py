"""The passes of a rewrite, a file each; pipeline.py has their order."""
