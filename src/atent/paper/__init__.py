"""The paper again: its published figures, which recipe makes which row, and the commands that measure them."""
