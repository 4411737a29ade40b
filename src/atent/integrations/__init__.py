"""Integrations of other software: each is an extra of the package and imported when used."""
