"""Training a language model: settings, set-up, loop, resume, and what is recorded."""
