"""What packages and verifies bundles: their folders, configs, names, overlays, cards, packages."""
