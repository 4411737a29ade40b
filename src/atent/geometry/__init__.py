"""What `atent.threat.Threat` is made of: radii and boxes (`values`), and the geometry of l1, l0 and patches."""
