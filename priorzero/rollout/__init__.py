"""Text generation for language-model RL: backends, the agent loop, checks of the weight sync. No losses."""
