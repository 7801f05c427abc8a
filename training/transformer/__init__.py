"""The expert transformer: the model, its diffusion, and how it is sampled and trained."""
