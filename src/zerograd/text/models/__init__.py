"""Language models: loading, scoring by their heads, and the tensors that a scheme trains."""
