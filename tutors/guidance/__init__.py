"""What a student does with advice: one file a method."""
