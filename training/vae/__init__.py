"""The 3D causal VAE: the model, its losses, and how it is trained."""
