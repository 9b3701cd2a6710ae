"""A quiet screen: no output of other libraries beside zerograd's progress."""

from __future__ import annotations


def quiet() -> None:
    """Switch off transformers' progress bars and warnings."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", module=r"peft\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
