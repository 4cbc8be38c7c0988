"""Whole studies: from the file to the results, and from one lab to another."""
