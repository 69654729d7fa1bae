"""Training: the step, the loop that yields events, the optimiser, checkpoints and devices."""
