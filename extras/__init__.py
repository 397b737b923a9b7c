"""What can be run and used beside mtcd.py; nobody needs it to know the method."""
