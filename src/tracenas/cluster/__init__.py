"""Workers on any number of machines, by Ray: joining or starting a cluster, and actors that answer tasks."""
