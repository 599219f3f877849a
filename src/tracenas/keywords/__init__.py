"""Keywords of the functions of `tracenas`: the settings of their commands."""
