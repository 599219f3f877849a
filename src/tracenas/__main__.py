"""`python -m tracenas`: the command line."""

from tracenas.cli import main

main()
