"""Studies: from a TOML file to trials, their folders, MLflow and the report."""
