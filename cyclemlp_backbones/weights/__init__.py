"""Reading, loading and downloading of weights."""
