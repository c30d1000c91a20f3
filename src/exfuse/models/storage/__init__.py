"""Reading, writing and importing models and weights."""
