"""From raw tables to clean ones: every row is kept, or dropped under one counted reason."""
