"""What happened: the only room that runs queries. One module for each noun, one query file for each module."""
