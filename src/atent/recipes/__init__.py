"""One small TOML file per experiment; see `atent recipes`."""
