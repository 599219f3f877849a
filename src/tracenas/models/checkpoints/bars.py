"""The progress bars of libraries: the one over loading is of no use to people, those over downloads are."""

__all__ = ["without_loading_bar"]


def without_loading_bar() -> None:
    """Switch off transformers' bar, with which it switches off the hub's, and the hub's on again where they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if shown:
        enable_progress_bars()
