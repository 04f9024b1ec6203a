"""Plays games with search and prior and returns segments. A function of (env, prior, model, rng); no Lightning."""
