"""One experiment a file: `measure(quick)` returns plain data, `page` makes Markdown of it, `figure` draws it."""
