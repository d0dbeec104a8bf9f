"""What each command does. A command imports its module from here when it is called, never before."""
