"""Language models: loading, the head that is scored, which tensors a scheme trains."""
