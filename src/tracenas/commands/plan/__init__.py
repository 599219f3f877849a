"""`tracenas plan`: what a search would cost, told before it."""
