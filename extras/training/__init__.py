"""The trainer of the built-in model, and the picture book that it learns from."""
