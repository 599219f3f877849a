"""`tracenas demo`: the whole way on a model that ships in the package, or on a published one."""
