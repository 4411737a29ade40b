"""Other people's software, each part an extra of the package, and imported when it is used."""
