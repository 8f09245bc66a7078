"""Results as tables, plots and documents."""
