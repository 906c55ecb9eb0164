"""The first front end: a checkpoint becomes a folder (run.py; what is known before a weight is read: prepare.py)."""
