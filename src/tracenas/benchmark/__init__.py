"""How fast a model runs, and how fast this machine is."""
