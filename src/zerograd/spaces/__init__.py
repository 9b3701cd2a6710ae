"""Parameter spaces: what is optimised."""
