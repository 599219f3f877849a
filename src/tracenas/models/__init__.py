"""Models in memory and on disk. Importing this package imports no torch; its modules do."""
