"""From files to raw tables: finds the files, splits them into rows and fields, recognises the columns."""
