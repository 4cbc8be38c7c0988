"""Studies: from a TOML file to trials, their journals, MLflow and the report."""
