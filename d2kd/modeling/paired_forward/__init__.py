"""How a student and its teacher are run on one batch, a function per detector family."""
