"""One level above training and evaluation: recipes' jobs, what is evaluated, comparisons, certificates of runs."""
