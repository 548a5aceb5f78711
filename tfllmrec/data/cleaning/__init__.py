"""Cleans raw tables: each row is kept, or dropped for one reason that is counted."""
