"""Training of one or many trials: objective, trainer, checkpoints. It knows nothing of studies."""
