"""Dataset formats, one module each: a subclass of `kdistill.data.reader.Reader` that opens files of that format."""
