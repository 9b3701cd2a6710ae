"""Integrations: zerograd's steps in trainers of other libraries."""
