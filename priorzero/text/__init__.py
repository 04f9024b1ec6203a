"""Strings to vectors and prompts: the sentence encoder, the action vocabulary, prompt templates, answer parsing."""
