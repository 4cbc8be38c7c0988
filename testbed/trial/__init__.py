"""One trial: what it builds, its training and evaluation, its folder, and how it is read again."""
