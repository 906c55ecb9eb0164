"""Which matrix gets how many stages, when an average is asked for (``--bits``): what each matters, and the best split."""
