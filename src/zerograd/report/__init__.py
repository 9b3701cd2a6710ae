"""HTML pages from plain dicts: of a run, of several runs, of a leaderboard. Markup is in `templates/` alone."""
