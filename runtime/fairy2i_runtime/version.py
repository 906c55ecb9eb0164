"""The version of both packages, once: pyproject.toml reads it from here, and a test compares CMake's."""

__version__ = "0.1.0"
