"""What is shown of results: tables, figures, pages, animations."""
