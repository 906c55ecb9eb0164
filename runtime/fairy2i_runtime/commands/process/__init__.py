"""The process that a program runs in: signals, standard streams. For a beginning without long imports."""
