"""Chat templates run apart: what they can use of the language, and the process with limits that runs them."""
