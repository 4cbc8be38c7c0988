"""Feature spaces of samples: a classifier trained on the data, and published networks on disk."""
