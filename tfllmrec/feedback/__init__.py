"""Tools for after deployment: the log of events and shown lists, experiments, estimates, exploration, monitoring."""
