"""README's reference tables, made from the code; `python -m tests.reference` writes them."""
