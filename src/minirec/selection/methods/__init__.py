"""Selection methods: a function a file, found by its name. To add one, add a file."""
