"""Stores segments, samples steps of them, makes batches. Knows no network: values come from callables."""
