"""Methods compared at matched evaluations and at matched seconds: a study is a YAML file, its results are JSON lines."""
