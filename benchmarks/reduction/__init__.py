"""What the tables about token reduction in docs are made by, with their CSVs.

`python -m benchmarks.reduction`: accuracy against multiply-adds of a small ViT on digit crops, by each method with and without fine-tuning;
one row of a CSV a (seed, method, setting). `crops` makes the data, `study` trains and evaluates, `report` makes the table and the picture.
"""
