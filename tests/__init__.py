"""What the program promises, held against something independent."""
