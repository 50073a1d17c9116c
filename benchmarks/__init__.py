"""How fast is it, beside what? Programs that measure; each prints a table and, with --out=FILE, adds a JSON line a row."""
