"""Scores, their protocol, and how people read them."""
