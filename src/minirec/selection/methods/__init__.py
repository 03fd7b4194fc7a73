"""Selection methods, one function per file, found by its name. To add a method, add a file."""
