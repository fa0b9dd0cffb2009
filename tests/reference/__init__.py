"""README's reference tables, generated from the code; `python -m tests.reference` writes them."""
