"""Where the trials of a study run, behind one interface: see `base.Executor`."""
