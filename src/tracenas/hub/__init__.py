"""The Hugging Face hub: names of models there, the commits that they stand for, and why it did not give something."""
