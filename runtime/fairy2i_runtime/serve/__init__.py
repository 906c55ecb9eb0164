"""The server: a model folder behind the HTTP interface of OpenAI. Needs the packages of the extra ``serve``."""
