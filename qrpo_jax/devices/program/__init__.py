"""A compiled program, read from its text: memory, arrays, collectives, and how long a step takes on a chip."""
