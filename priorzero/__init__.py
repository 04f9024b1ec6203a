"""Language-guided planning in text games: a world model searches, a language model supplies the prior, both learn."""

__version__ = "0.1.0"
