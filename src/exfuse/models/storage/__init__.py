"""Models and weights as files: reading, writing, importing."""
