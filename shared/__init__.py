"""Parts of the bundles that can be used alone: layers, networks, losses, handlers, metrics, transforms and data."""
