"""Where a command may write: to a free path, or over results that it can prove to be its own."""
