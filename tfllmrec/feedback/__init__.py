"""After deployment: the log of events and of the lists that were shown, experiments, estimates, exploration."""
