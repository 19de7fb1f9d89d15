"""One experiment a file: `measure(quick)` returns plain data, `page(results)` its Markdown, `figure(results, path)` its figure."""
