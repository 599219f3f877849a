"""`tracenas study`: which proxies order architectures as their recovered quality does."""
