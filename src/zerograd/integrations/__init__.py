"""Trainers of other libraries with zerograd's steps."""
