"""What a study can name: the dataclasses that plugins register, and how options are bound."""
