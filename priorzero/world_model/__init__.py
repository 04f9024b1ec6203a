"""UniZero: a transformer world model over latent states. Knows no game, no replay and no search."""
