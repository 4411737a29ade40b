"""Reproduction of the paper: its published figures, the recipe of each row, and the measurements."""
