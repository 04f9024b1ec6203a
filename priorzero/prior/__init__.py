"""Scores the valid actions of a situation: batched, cached, stamped with a policy version. No losses, no search."""
