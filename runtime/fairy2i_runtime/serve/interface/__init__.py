"""The interface of OpenAI: what requests, answers and errors look like."""
