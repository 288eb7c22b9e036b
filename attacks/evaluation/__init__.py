"""How well answers tell members from non-members, with intervals, and what that proves of a guarantee."""
