"""Tables, leaderboard, figures and the report of what was found."""
