"""The paper's ablation: its rows, their runs, and the table with error bars."""
