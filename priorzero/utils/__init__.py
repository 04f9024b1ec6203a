"""Processes, logging and model files: nothing that knows of games, search or learning."""
