"""One TOML per data set release, read with `importlib.resources`; ships as `stmae_manifests`."""
