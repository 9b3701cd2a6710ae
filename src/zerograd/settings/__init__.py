"""Settings as dataclasses with checked fields, and objects from a user's own file or module."""
