"""The page that returns the user to the app."""
