"""The dispatcher: keeps the picture of the fleet, cuts jobs into units, settles every item once."""
