"""One plain function per command, from its settings to a directory or a result."""
