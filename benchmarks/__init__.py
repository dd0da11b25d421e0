"""Side-by-side measurements; their dated results lie in results/."""
