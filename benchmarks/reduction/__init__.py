"""What the tables about token reduction in docs are made by, with their CSVs."""
