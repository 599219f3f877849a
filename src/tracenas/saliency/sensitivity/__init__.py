"""The cost of every width of every sub-block, in closed form: statistics, elimination and the table."""
