"""Sweeps: many trainings of one recipe over a space of its settings, compared only on the validation split."""
