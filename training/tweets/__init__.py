"""Files and archives of any format, read into tweets one at a time."""
