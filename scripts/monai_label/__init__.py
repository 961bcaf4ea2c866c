"""The server of MONAI Label: `serve` starts it, `app` is what it runs, without `shared` or the rest of scripts."""
