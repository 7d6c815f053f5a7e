"""What everything stands on: sets, programs and the type of a row; no rule and no method."""
