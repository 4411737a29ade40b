"""Sweeps: many trainings of one recipe over a space of its settings, compared by validation figures alone."""
