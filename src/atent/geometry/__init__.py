"""Geometry of `atent.threat.Threat`: radii and boxes (`values`), norms per sample (`samples`), l1, l0 and patches."""
