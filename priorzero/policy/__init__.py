"""The language model: loading it, log-probabilities of answers, and its LightningModule. No games, no threads."""
