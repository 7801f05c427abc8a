"""Training of the 3D VAE and the expert transformer on the shards."""
