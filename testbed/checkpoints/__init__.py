"""Models of other codebases: their weights, what is around their networks, and their folders."""
