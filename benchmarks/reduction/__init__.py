"""The reduction study: accuracy against multiply-adds of a small ViT on digit crops, for each method with and without fine-tuning.

One row of a CSV a (seed, method, setting). `crops` makes the data, `study` trains and evaluates, `report` makes the table and the picture.
"""
