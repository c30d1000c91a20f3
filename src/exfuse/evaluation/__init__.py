"""Scores of a split, their protocol, tables and pages."""
