"""Where a command may write: where nothing is, or over what it can prove that it wrote itself."""
