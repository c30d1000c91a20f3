"""The paper's ablation: which rows there are, running them, and the table with its error bars."""
