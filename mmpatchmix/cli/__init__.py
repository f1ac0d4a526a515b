"""What the command line is made of: arguments, checks, descriptions."""
