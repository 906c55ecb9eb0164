"""The numerics contract (docs/architecture.md), checked on a finished model: by verify, and by a conversion about itself."""
