"""Pure functions of reinforcement learning, each with its paper: returns, advantages, policy losses."""
