"""How fast and how faithful: every number of the README is printed by a command in this folder."""
