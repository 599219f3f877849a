"""Text and token ids in: sources, packing, calibration sets, held-out windows.

Nothing is imported here: `tracenas.data.sources` must be able to check what the user named without torch.
"""
