"""Reads files into raw tables: finds the files, splits them into rows and fields, and recognises the columns."""
