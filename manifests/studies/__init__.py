"""Study files that ship with the project."""
