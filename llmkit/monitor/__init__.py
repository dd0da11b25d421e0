"""What a run records and shows: metrics, events, progress, FLOPs, the device, Weights & Biases."""
