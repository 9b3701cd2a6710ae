"""Settings as dataclasses: their fields checked in one place, and what a user's own file or module provides."""
