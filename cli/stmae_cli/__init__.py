"""The two command lines: they parse, call one function, print."""
