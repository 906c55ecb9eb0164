"""One matrix: the metric of its inputs, what it should be, and the search for its codes."""
