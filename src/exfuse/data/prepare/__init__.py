"""Turning downloaded public data sets into a folder in the format "lists"."""
