"""The recipe: its sections, reading and checking it, the table of methods. No torch."""
