Files *.toml here are read after tidegate.toml, in the order of their names. See tidegate.toml(5).
