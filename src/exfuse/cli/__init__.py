"""The command line; no other module imports it."""
