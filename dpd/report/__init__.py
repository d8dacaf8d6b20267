"""Reports of the analysis commands: statistics, tables, figures and pages."""
