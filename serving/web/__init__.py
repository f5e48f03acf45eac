"""The page for people: plain HTML, JavaScript and CSS, served from the package's own files."""
