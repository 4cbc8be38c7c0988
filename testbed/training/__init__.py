"""Training of one trial: objective, engine, checkpoints. Knows nothing of studies."""
