"""The package of plugin files; the registry adds their folders to its path."""
