"""Class names: by number, by name, from lists."""
