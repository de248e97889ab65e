"""Image tools over the engine. Paths and devices are arguments; nothing is read at import."""
