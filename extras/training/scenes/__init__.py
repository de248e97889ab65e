"""The parts of the picture book: words, shapes, places, styles and how they combine."""
